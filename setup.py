"""What is installed beside ``pyproject.toml``'s metadata: folders of the checkout under the package's own names."""

from setuptools import find_packages, setup

# ``models`` would be everybody's name: installed, the networks are ``drconv_models``.
networks = [name.replace("models", "drconv_models", 1) for name in find_packages(include=["models", "models.*"])]

setup(
    packages=[*find_packages(include=["drconv", "drconv.*"]), *networks, "drconv.configs", "drconv.printed"],
    package_dir={"drconv_models": "models", "drconv.configs": "configs", "drconv.printed": "results"},
    package_data={
        "drconv": ["**/*.cpp", "**/*.h", "**/*.npz"],
        "drconv.configs": ["**/*.yaml"],
        "drconv.printed": ["*.yaml"],
    },
)
