"""Lists every study with its claim: python -m experiments."""

import sys

from experiments.common.catalog import claim_of, studies


def main() -> None:
    """Prints a line for each study, and what it claims."""
    try:
        modules = studies()
    except ModuleNotFoundError as error:
        sys.exit(f"studies need {error.name}: pip install -e '.[experiments]'")
    for name, module in modules.items():
        print(f"python -m experiments.{name}\n    {claim_of(module)}\n")
    print(
        "Each has --help and --smoke; python -m experiments.common.documents makes the"
    )
    print("tables of the documentation again from results/.")


if __name__ == "__main__":
    main()
