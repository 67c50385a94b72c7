"""The instruction sets of the C library against one another, also those that this processor lacks.

64-bit ARM is built by a cross compiler and run by qemu; AVX-512 runs with its intrinsics emulated by SIMDe. A
part whose tools are missing is skipped, and says so. The reference is the portable path of a plain build; the
tests of each kernel hold that, and the sets found here, against float64.
"""
import platform
import shutil
import subprocess
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
/* Four that SIMDe lacks. */
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
#define _mm512_cvtepu8_epi32(a) emulated_widened(a, 0)
#define _mm512_cvtepi8_epi32(a) emulated_widened(a, 1)
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#define _mm512_cvtph_ps emulated_cvtph_ps
/* The functions are compiled for AVX2, so that no real AVX-512 instruction can come out. */
#define target(set) unused
"""


# instruction set → what isa_results.c says: products, blocks with int8 and int4, everything else
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
        ends = np.frombuffer(data, "<i4", 3, 16).cumsum()
        numbers = np.frombuffer(data, "<f4", ends[-1], 28)
        found[data[:16].rstrip(b"\0").decode()] = np.split(numbers, ends[:-1])
        data = data[28 + 4 * int(ends[-1]):]
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


def assert_same(found: Results, plain: Results) -> None:
    """Near the portable path. The other sets' products are the same to the last bit: all sum in one order."""
    expected, exact = plain["portable"], plain[library.isas()[0]][0]
    for name, arrays in found.items():
        assert [len(a) for a in arrays[:2]] == [145 * 91 * 3 + 48 * 91 * 2, 2 * 7 * 96]
        assert all(np.isfinite(a).all() for a in arrays)
        # The products are sums of up to 512 terms up to 1; the inputs of quantised blocks are rounded.
        allowed = 2e-4 * abs(expected[1]).max()
        np.testing.assert_allclose(arrays[0], expected[0], rtol=0, atol=3e-5, err_msg=name)
        np.testing.assert_allclose(arrays[1], expected[1], rtol=0, atol=allowed, err_msg=name)
        np.testing.assert_allclose(arrays[2], expected[2], rtol=3e-5, atol=3e-5, err_msg=name)
        if name != "portable" and library.isa() != "portable":
            assert np.array_equal(arrays[0], exact), name


@pytest.mark.slow
def test_the_sets_of_this_processor(plain):
    assert_same(plain, plain)


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
    special = {"matrix_products_avx512.c": emulate, "isa.c": ["-D__builtin_cpu_supports(set)=1"]}
    program = build("gcc", tmp_path, special)
    machine_code = ["objdump", "-d", str(tmp_path / "matrix_products_avx512.c.o")]
    assert "zmm" not in subprocess.run(machine_code, capture_output=True, text=True, check=True).stdout
    found = results(str(program))
    assert tuple(found)[-3:] == ("avx512-vnni", "avx2", "portable")
    assert_same(found, plain)


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
