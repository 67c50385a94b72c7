"""Packages redlite and builds the C kernels. `redlite/kernels` and `redlite/data` are links to `kernels/` and `data/`.

The C sources become one plain shared library (no Python API in it, loaded by ctypes). Where there
is no C compiler the build goes on without it, says so, and the reference kernels serve.
"""
import re
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "redlite/__init__.py").read_text()).group(1)


class BuildKernels(build_ext):
    """Builds the library; a missing or failing compiler costs speed, never the installation."""

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except Exception as error:  # distutils raises several unrelated types for "no compiler"
            self.warn(f"redlite: the C kernels were not built ({error}); the reference kernels will be used. "
                      "Install gcc or clang and install redlite again to get them.")

    def copy_extensions_to_source(self):
        try:
            super().copy_extensions_to_source()
        except FileNotFoundError as error:
            self.warn(f"redlite: no C kernels to copy ({error})")


sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "kernels").glob("*.c"))
setup(
    name="redlite",
    version=VERSION,
    description="Red-team language models and make them safer, on a machine with no network",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["redlite", "redlite.*"]),
    package_data={"redlite.report": ["assets/*"], "redlite.kernels": ["*.c", "*.h", "README.md"], "redlite.data": ["**/*"]},
    install_requires=["numpy>=1.24", "torch>=2.4", "safetensors>=0.4", "sentencepiece>=0.2", "requests>=2.28"],
    extras_require={"test": ["pytest>=7"], "gpu": ["triton>=3.0"]},
    ext_modules=[Extension("redlite.kernels._c", sources=sources, depends=sorted(str(p.relative_to(ROOT)) for p in (ROOT / "kernels").glob("*.h")),
                           extra_compile_args=["-O3", "-std=c11", "-fno-math-errno", "-ffp-contract=fast", "-Wno-psabi", "-pthread"],
                           extra_link_args=["-pthread", "-lm"])] if sources else [],
    cmdclass={"build_ext": BuildKernels},
)
