"""Prints the version, the devices and where to start: python -m subtune_jax."""

from importlib.metadata import version

import jax


def main() -> None:
    """Prints what a new user needs to know about this installation."""
    devices = ", ".join(f"{d.platform}:{d.id} ({d.device_kind})" for d in jax.devices())
    print(f"subtune_jax {version('subtune-jax')}, jax {jax.__version__}")
    print(f"devices: {devices}")
    print("start: import subtune_jax as st; help(st); st.demo.digits_task('contrast')")
    print("studies need a clone of the repository: python -m experiments lists them")


if __name__ == "__main__":
    main()
