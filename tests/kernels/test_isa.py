"""The instruction sets of the C library against one another, also those that this processor lacks.

64-bit ARM is built by a cross compiler and run by qemu; AVX-512 runs with its intrinsics emulated by SIMDe. A
part whose tools are missing is skipped, and says so. The reference is the portable path of a plain build; the
tests of each kernel hold that, and the sets found here, against float64.
"""
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from redlite.kernels.cpu import library

ROOT = Path(__file__).parents[2]
FLAGS = [
    "-O2", "-std=c11", "-fno-math-errno", "-ffp-contract=fast", "-Wno-psabi", "-pthread", "-Wall", "-Wextra",
    "-Werror", f"-I{ROOT / 'kernels' / 'c'}"]
SIMDE = Path("/usr/include/simde/x86/avx512.h")
EMULATED = """
#include <simde/x86/f16c.h>
#include <simde/x86/avx512.h>
/* Those that SIMDe lacks. */
static inline simde__m512 emulated_cvtepi32_ps(simde__m512i a)
{
    simde__m512i_private from = simde__m512i_to_private(a);
    simde__m512_private to;
    for (int i = 0; i < 16; i++)
        to.f32[i] = (float)from.i32[i];
    return simde__m512_from_private(to);
}
static inline simde__m512 emulated_cvtph_ps(simde__m256i a)
{
    simde__m512_private to;
    for (int i = 0; i < 2; i++)
        to.m256[i] = _mm256_cvtph_ps(i ? _mm256_extracti128_si256(a, 1) : _mm256_castsi256_si128(a));
    return simde__m512_from_private(to);
}
static inline simde__m512i emulated_widened(__m128i a, int is_signed)
{
    simde__m512i_private to;
    unsigned char from[16];
    _mm_storeu_si128((__m128i *)from, a);
    for (int i = 0; i < 16; i++)
        to.i32[i] = is_signed ? (signed char)from[i] : from[i];
    return simde__m512i_from_private(to);
}
static inline __m256i emulated_cvtps_ph(simde__m512 a)
{
    simde__m512_private from = simde__m512_to_private(a);
    return _mm256_set_m128i(_mm256_cvtps_ph(from.m256[1], 0), _mm256_cvtps_ph(from.m256[0], 0));
}
static inline simde__m512 emulated_mask_loadu_ps(simde__m512 rest, unsigned mask, const float *at)
{
    simde__m512_private to = simde__m512_to_private(rest);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1)
            to.f32[i] = at[i];
    return simde__m512_from_private(to);
}
static inline void emulated_mask_storeu_ps(float *at, unsigned mask, simde__m512 x)
{
    simde__m512_private from = simde__m512_to_private(x);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1)
            at[i] = from.f32[i];
}
static inline __m256i emulated_maskz_loadu_epi16(unsigned mask, const unsigned short *at)
{
    unsigned short to[16] = {0};
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1)
            to[i] = at[i];
    return _mm256_loadu_si256((const __m256i *)to);
}
static inline simde__m512i emulated_maskz_cvtps_epi32(unsigned mask, simde__m512 a)
{
    simde__m512_private from = simde__m512_to_private(a);
    simde__m512i_private to;
    for (int i = 0; i < 16; i++)
        to.i32[i] = mask >> i & 1 ? (int)__builtin_lrintf(from.f32[i]) : 0;
    return simde__m512i_from_private(to);
}
static inline simde__m512 emulated_permute_ps(simde__m512 a, int order)
{
    simde__m512_private from = simde__m512_to_private(a), to;
    for (int i = 0; i < 16; i++)
        to.f32[i] = from.f32[i / 4 * 4 + (order >> i % 4 * 2 & 3)];
    return simde__m512_from_private(to);
}
static inline simde__m512 emulated_shuffle_f32x4(simde__m512 a, simde__m512 b, int order)
{
    simde__m512_private first = simde__m512_to_private(a), second = simde__m512_to_private(b), to;
    for (int i = 0; i < 16; i++)
        to.f32[i] = (i < 8 ? first : second).f32[(order >> i / 4 * 2 & 3) * 4 + i % 4];
    return simde__m512_from_private(to);
}
static inline int emulated_reduce(simde__m512i a, int largest)
{
    simde__m512i_private from = simde__m512i_to_private(a);
    int found = from.i32[0];
    for (int i = 1; i < 16; i++)
        found = !largest ? found + from.i32[i] : from.i32[i] > found ? from.i32[i] : found;
    return found;
}
#define _mm512_maskz_cvtps_epi32 emulated_maskz_cvtps_epi32
#define _mm512_permute_ps emulated_permute_ps
#define _mm512_shuffle_f32x4 emulated_shuffle_f32x4
#define _mm512_reduce_max_epi32(a) emulated_reduce(a, 1)
#define _mm512_reduce_add_epi32(a) emulated_reduce(a, 0)
#define _mm512_cvtps_ph(a, rounding) emulated_cvtps_ph(a)
#define _mm512_mask_loadu_ps emulated_mask_loadu_ps
#define _mm512_mask_storeu_ps emulated_mask_storeu_ps
#define _mm256_maskz_loadu_epi16 emulated_maskz_loadu_epi16
#define _mm512_cvtepu8_epi32(a) emulated_widened(a, 0)
#define _mm512_cvtepi8_epi32(a) emulated_widened(a, 1)
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#define _mm512_cvtph_ps emulated_cvtph_ps
/* The functions are compiled for AVX2, so that no real AVX-512 instruction can come out. */
#define target(set) unused
"""


# instruction set → what isa_results.c says: products, blocks with int8 and int4, everything else, bfloat16
Results = dict[str, list[np.ndarray]]


def build(compiler: str, folder: Path, special: dict[str, list[str]] | None = None,
          link: tuple[str, ...] = ()) -> Path:
    """Compile the library's sources and isa_results.c into folder/program. special: these only, with flags.
    """
    files = *sorted((ROOT / "kernels" / "c").glob("*.c")), ROOT / "tests" / "helpers" / "isa_results.c"
    sources = {source.name: source for source in files}
    for name in special or sources:
        flags = [*FLAGS, *(special or {}).get(name, ())]
        done = subprocess.run([compiler, *flags, "-c", str(sources[name]), "-o", str(folder / f"{name}.o")],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    objects = [str(folder / f"{name}.o") for name in sources]
    subprocess.run([compiler, *objects, *link, "-pthread", "-lm", "-o", str(folder / "program")], check=True)
    return folder / "program"


def results(*command: str) -> Results:
    data, found = subprocess.run(command, capture_output=True, check=True, timeout=120).stdout, {}
    while data:
        ends = np.frombuffer(data, "<i4", 4, 16).cumsum()
        numbers = np.frombuffer(data, "<f4", ends[-1], 32)
        found[data[:16].rstrip(b"\0").decode()] = np.split(numbers, ends[:-1])
        data = data[32 + 4 * int(ends[-1]):]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where a plain build is."""
    if not shutil.which("gcc") or not library.isas():
        pytest.skip("there is no gcc, or no library")
    folder = tmp_path_factory.mktemp("plain")
    build("gcc", folder)
    return folder


@pytest.fixture(scope="module")
def plain(folder) -> Results:
    found = results(str(folder / "program"))
    assert tuple(found) == library.isas()
    return found


def assert_same(found: Results, plain: Results, emulated: bool = False) -> None:
    """Near the portable path. On x86 all other sets give the same bits; on ARM, and emulated, products do.

    All sum in one order; the portable path rounds products before it adds them. Bfloat16 is not among them.
    """
    expected, exact = plain["portable"], plain[library.isas()[0]]
    for name, arrays in found.items():
        assert [len(a) for a in arrays[:2]] == [145 * 91 * 3 + 48 * 91 * 2, 2 * 7 * 96]
        assert all(np.isfinite(a).all() for a in arrays)
        # The products are sums of up to 512 terms up to 1; the inputs of quantised blocks are rounded.
        allowed = 2e-4 * abs(expected[1]).max()
        np.testing.assert_allclose(arrays[0], expected[0], rtol=0, atol=3e-5, err_msg=name)
        np.testing.assert_allclose(arrays[1], expected[1], rtol=0, atol=allowed, err_msg=name)
        np.testing.assert_allclose(arrays[2], expected[2], rtol=3e-5, atol=3e-5, err_msg=name)
        # What parts the sets may also part what bfloat16's rounding does with it: by one of its steps.
        np.testing.assert_allclose(arrays[3], expected[3], rtol=2 ** -7, atol=3e-5, err_msg=name)
        if name != "portable" and library.isa() != "portable":
            same = 1 if name.startswith("neon") or emulated and name.startswith(("avx512", "amx")) else 4
            assert all(map(np.array_equal, arrays[:same], exact)), name


@pytest.mark.slow
def test_the_sets_of_this_processor(plain):
    assert_same(plain, plain)


def run(code: str, isa: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own, whose environment forces an instruction set."""
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, "REDLITE_ISA": isa}, text=True,
                          capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("isa", library.isas()[1:] or [""])
def test_the_environment_forces_a_set(isa):
    """The C library uses it, and `perf` names for each kernel a set that is no wider."""
    if not isa:
        pytest.skip("there is no narrower set here")
    done = run("from redlite import kernels; from redlite.kernels.cpu import library; print(library.isa())\n"
               "from redlite.perf.cpu import loops; print(*loops().values(), sep=',')", isa)
    assert done.returncode == 0, done.stderr
    used, _, named = done.stdout.splitlines()
    narrower = library.isas()[library.isas().index(isa):]
    assert used == isa and set(named.split(",")) <= set(narrower)


@pytest.mark.slow
def test_a_set_that_is_not_there_is_refused():
    if library.missing():
        pytest.skip(library.missing())
    program = "import sys; from redlite.cli import {0}; from redlite.cli.program import guarded; " \
              "sys.exit(guarded('{0}', {0}.body, ['--help']))"
    done = run(program.format("perf"), "sse9")
    line = (f"perf: REDLITE_ISA='sse9': this processor and build have {', '.join(library.isas())}; "
            "use one of them, or leave it unset\n")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    done = run("import redlite\ntry: redlite.load('organism')\nexcept redlite.Error as e: print(e)", "sse9")
    assert done.returncode == 0 and done.stdout == line.removeprefix("perf: ")


def test_avx512_is_in_the_library():
    if platform.machine() != "x86_64" or not library.isas():
        pytest.skip("not a built library for x86-64")
    formats = "f32", "q8", "q4", "q4k", "q6k"
    assert all(hasattr(library.library(), f"rl_tile_{format}_avx512") for format in formats)


def test_a_compiler_without_bfloat16_builds_the_rest(tmp_path):
    if platform.machine() != "x86_64" or not shutil.which("gcc"):
        pytest.skip("needs x86-64 and gcc")
    for name in ("isa", "matrix_products", "matrix_products_bf16"):
        flags = [*FLAGS, "-U__GNUC__", "-D__GNUC__=10"]
        done = subprocess.run(["gcc", *flags, "-c", str(ROOT / "kernels" / "c" / f"{name}.c"), "-o",
                               str(tmp_path / f"{name}.o")], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        symbols = subprocess.run(["nm", str(tmp_path / f"{name}.o")], capture_output=True, text=True).stdout
        assert "_bf16_avx512" not in symbols and "amx" not in symbols


@pytest.mark.slow
def test_avx512_emulated(folder, plain, tmp_path):
    if "avx2" not in library.isas() or not SIMDE.exists():
        pytest.skip("AVX2 and SIMDe's headers (Debian: libsimde-dev) are needed")
    (tmp_path / "emulated.h").write_text(EMULATED)
    for object_file in folder.glob("*.o"):
        shutil.copy(object_file, tmp_path)
    emulate = [
        "-O1", "-mavx2", "-mfma", "-mf16c", "-w", "-DSIMDE_ENABLE_NATIVE_ALIASES", "-include",
        str(tmp_path / "emulated.h")]
    special = {"matrix_products_avx512.c": emulate, "loops_avx512.c": [*emulate, "-DREDLITE_EMULATED"],
               "isa.c": ["-D__builtin_cpu_supports(set)=1"]}
    program = build("gcc", tmp_path, special)
    for name in special:
        machine_code = ["objdump", "-d", str(tmp_path / f"{name}.o")]
        assert "zmm" not in subprocess.run(machine_code, capture_output=True, text=True, check=True).stdout
    found = results(str(program))
    assert tuple(found)[-3:] == ("avx512-vnni", "avx2", "portable")
    assert_same(found, plain, emulated=True)    # vectors that are taken apart round elsewhere in attention


@pytest.mark.slow
def test_arm(plain, tmp_path):
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not compiler:
        pytest.skip("there is no cross compiler for 64-bit ARM (Debian: gcc-aarch64-linux-gnu)")
    program = build(compiler, tmp_path, link=("-static",))
    if not qemu:
        pytest.skip("compiled without a warning, but not run: there is no qemu-aarch64 (qemu-user-static)")
    neon = "neon", "portable"
    for processor, sets in (("max", ("neon-dotprod", *neon)), ("cortex-a57", neon)):
        found = results(qemu, "-cpu", processor, str(program))
        assert tuple(found) == sets
        assert_same(found, plain)
