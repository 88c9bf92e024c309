"""Says where the packages are; all the rest is in pyproject.toml. The folder configs/ is installed as mcd_jax/configs."""
from setuptools import find_namespace_packages, find_packages, setup

configs = ["mcd_jax.configs", *(f"mcd_jax.configs.{name}" for name in find_namespace_packages("configs"))]
setup(packages=[*find_packages(include=["mcd_jax*"]), *configs], package_dir={"mcd_jax.configs": "configs"})
