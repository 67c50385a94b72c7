"""Packages redlite and builds the C kernels.

`redlite/kernels` and `redlite/data` are links to `kernels/` and `data/`. The C sources become one plain
shared library, without a Python API, which ctypes loads. If there is no C compiler, the build says so and
goes on: the reference kernels serve.
"""
import re
import runpy
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import FileError

ROOT = Path(__file__).parent
KERNELS = Path("redlite/kernels")  # through the link, so that a source distribution holds each file once
COMMANDS = ("redeval", "collect", "safealign")
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "redlite/__init__.py").read_text())[1]
DIGEST = runpy.run_path(str(ROOT / KERNELS / "cpu/sources.py"))["digest"](ROOT / KERNELS / "c")


class BuildKernels(build_ext):
    """Builds the library; a missing or failing compiler costs speed, never the installation."""

    def build_extension(self, ext):
        built = Path(self.get_ext_fullpath(ext.name))
        if built.exists() and DIGEST.encode() not in built.read_bytes():
            self.force = True  # it is of other sources, whatever the files' times say
        try:
            super().build_extension(ext)
        except Exception as error:  # distutils raises several unrelated types for "no compiler"
            self.warn(f"redlite: the C kernels were not built ({error}); the reference kernels will be used. "
                      "Install gcc or clang and install redlite again to get them.")

    def copy_extensions_to_source(self):
        self.force = True  # a stale library there may be newer than the one that was built
        try:
            super().copy_extensions_to_source()
        except (FileNotFoundError, FileError) as error:  # which of them depends on the kind of installation
            self.warn(f"redlite: no C kernels to copy ({error})")


def c_files(ending):
    return sorted(str(p.relative_to(ROOT)) for p in (ROOT / KERNELS / "c").glob(f"*.{ending}"))


setup(
    name="redlite",
    version=VERSION,
    description="Red-team language models and make them safer, on a machine with no network",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["redlite", "redlite.*"]),
    exclude_package_data={"": ["*.pyc", "__pycache__/*"]},
    package_data={"redlite": ["py.typed"], "redlite.report": ["assets/*"],
                  "redlite.kernels": ["c/*.[ch]", "README.md"], "redlite.data": ["**/*"]},
    entry_points={"console_scripts": [f"{name} = redlite.cli.{name}:main" for name in COMMANDS]},
    install_requires=["numpy>=1.24", "torch>=2.4", "safetensors>=0.4", "sentencepiece>=0.2",
                      "requests>=2.28"],
    extras_require={"test": ["pytest>=7"], "gpu": ["triton>=3.0"], "dev": ["ruff>=0.5", "mypy>=1.10"]},
    ext_modules=[Extension("redlite.kernels._c", sources=c_files("c"), depends=c_files("h"),
                           define_macros=[("RL_SOURCES", f'"{DIGEST}"')],
                           extra_compile_args=["-O3", "-std=c11", "-fno-math-errno", "-ffp-contract=fast",
                                               "-Wno-psabi", "-pthread"],
                           extra_link_args=["-pthread", "-lm"])],
    cmdclass={"build_ext": BuildKernels},
)
