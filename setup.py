"""Builds the compiled kernel of image views where a C++ compiler is found; everything else stands in pyproject.toml.

``src/osteon/views/_kernel.cpp`` becomes ``_kernel.so`` beside it: a plain library without Python's or torch's headers,
so one wheel serves every Python. Without a compiler the package installs all the same, and views take torch operations.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zlib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FLAGS = ["-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-fno-math-errno",
         "-fno-trapping-math", "-fno-signed-zeros", "-ffp-contract=off", "-w"]


def compilers() -> list[list[str]]:
    """Commands of the C++ compilers to try, the one asked for by ``CXX`` first."""
    given = [os.environ.get("CXX"), sysconfig.get_config_var("CXX"), "c++", "g++", "clang++"]
    commands = [shlex.split(command) for command in given if command]
    return [command for command in commands if shutil.which(command[0])]


class BuildKernel(build_ext):
    """Compile the kernel with the first compiler that can, or go on without."""

    def build_extension(self, ext: Extension) -> None:
        """Write the library, if possible."""
        source, target = Path(ext.sources[0]), Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        checksum = f"-DOSTEON_SOURCE={zlib.crc32(source.read_bytes())}u"
        why = "no C++ compiler found (c++, g++, clang++ or CXX)"
        for command in compilers():
            done = subprocess.run([*command, *FLAGS, checksum, "-o", str(target), str(source)], capture_output=True,
                                  text=True, check=False)
            if done.returncode == 0:
                return
            why = f"{command[0]} failed: {(done.stderr.strip().splitlines() or ['no message'])[0]}"
        target.unlink(missing_ok=True)
        print(f"osteon: the compiled kernel of views is left out, torch operations are used: {why}", file=sys.stderr)

    def get_ext_filename(self, fullname: str) -> str:
        """The same name for every Python."""
        return os.path.join(*fullname.split(".")) + ".so"

    def copy_extensions_to_source(self) -> None:
        """In an editable install, only if there is something to copy."""
        if Path(self.build_lib, self.get_ext_filename(self.extensions[0].name)).exists():
            super().copy_extensions_to_source()

    def get_outputs(self) -> list[str]:
        """What was really built."""
        return [path for path in super().get_outputs() if Path(path).exists()]


class PlatformWheel(bdist_wheel):
    """A wheel for this platform and any Python 3 when the kernel was built, else for every platform."""

    def run(self) -> None:
        """Build the kernel first, to know."""
        self.run_command("build_ext")
        self.root_is_pure = not self.get_finalized_command("build_ext").get_outputs()
        if self.root_is_pure:
            self.distribution.ext_modules = []
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Its library knows nothing of Python's version."""
        python, abi, platform = super().get_tag()
        return ("py3", "none", "any" if self.root_is_pure else platform)


setup(ext_modules=[Extension("osteon.views._kernel", ["src/osteon/views/_kernel.cpp"])],
      cmdclass={"build_ext": BuildKernel, "bdist_wheel": PlatformWheel})
