"""Lists every study with its claim: python -m experiments."""

from experiments.common.catalog import claim_of, studies


def main() -> None:
    """Prints a line for each study, and what it claims."""
    for name, module in studies().items():
        print(f"python -m experiments.{name}\n    {claim_of(module)}\n")
    print(
        "Each has --help and --smoke; python -m experiments.common.documents makes the"
    )
    print("tables of the documentation again from results/.")


if __name__ == "__main__":
    main()
