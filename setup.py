"""The package's contents: everything that a run needs travels inside, also what a checkout keeps at its top level."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

PLACES = {"rankpo._config": "config", "rankpo._accelerate_config": "accelerate_config"}  # in the package: here


class FreshBuild(build_py):
    """A build that starts empty: files of an earlier one, which the sources may have no more, would be packed too."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib), ignore_errors=True)
        super().run()


setup(
    packages=[*find_namespace_packages(include=["rankpo", "rankpo.*", "hydra_plugins", "hydra_plugins.*"]), *PLACES],
    package_dir=PLACES,
    package_data={
        **{name: ["**/*.yaml"] for name in PLACES},
        "rankpo": ["report/*.html", "report/*.css", "report/*.js", "prompts/*.yaml", "models/known.yaml"],
    },
    include_package_data=False,
    cmdclass={"build_py": FreshBuild},
)
