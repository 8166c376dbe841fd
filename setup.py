"""What pyproject.toml cannot say: the shipped model and the scripts stand at the root, where people look for them, and
travel inside the package in a wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SCRIPTS = ("sample.py", "train.py")


class BuildWithModel(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "vidgen"
        shutil.copytree("weights", package / "weights", dirs_exist_ok=True)
        (package / "scripts").mkdir(exist_ok=True)
        for script in SCRIPTS:
            shutil.copy(script, package / "scripts" / script)


setup(cmdclass={"build_py": BuildWithModel})
