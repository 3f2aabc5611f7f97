"""Count how often the verdicts on the primary claims err, and how often they tell a true effect.

    python tests/long/claims.py [STUDIES]     write the two tables of docs/claims.md

Exits with 1 if a share of errors is above 5 % by more than the drawing of studies explains.
"""

import math
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from simulated_studies import MARGINS, NAT, PRIMARY, SPEED, count, errors, truth  # noqa: E402

PAGE = ROOT / "docs" / "claims.md"
BEGIN, END = "<!-- begin: python tests/long/claims.py -->", "<!-- end -->"
SPREAD = 0.03  # nat, of the seeds; the shares of errors do not depend on it
CONDITIONS = {
    "normal": {},
    "heavy tails": {"heavy": True},
    "10 % of runs fail": {"failing": 0.1},
    "both": {"heavy": True, "failing": 0.1},
}


def row(*cells: str) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table_of_errors(studies: int) -> tuple[list[str], float]:
    """Return the lines of the table of errors, and the largest share."""
    lines, worst, seed = [row("truth", *CONDITIONS), "|---|" + "--:|" * len(CONDITIONS)], 0.0, 10
    for name, margin in MARGINS.items():
        shares = []
        for options in CONDITIONS.values():
            shares.append(errors(studies, seed, margin, SPREAD, **options))
            seed += 1
        worst = max(worst, *shares)
        lines.append(row(name, *(f"{100 * share:.1f} %" for share in shares)))
        print(lines[-1], flush=True)
    return lines, worst


def power(studies: int) -> list[str]:
    """Return the lines of the table of power: shares of studies that reproduce each claim."""
    distances = (2, 3, 4)
    lines = [row("claim", *(f"{distance} sd" for distance in distances)), "|---|" + "--:|" * len(distances)]
    shares = []
    for distance in distances:
        beyond = distance * SPREAD
        losses = truth([NAT + beyond, NAT + 2 * beyond, NAT + beyond], beyond - NAT)
        shares.append(count(studies, 20, losses, SPREAD, int8=0.0, ratio=SPEED * math.exp(0.03 * distance)))
    for claim in PRIMARY:
        lines.append(row(claim.id, *(f"{100 * share.get((claim.id, 'reproduced'), 0.0):.0f} %" for share in shares)))
        print(lines[-1], flush=True)
    return lines


def main(studies: int) -> int:
    table, worst = table_of_errors(studies)
    told = power(max(100, studies // 5))
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    content = "\n".join([BEGIN, *table, "", *told, END])
    PAGE.write_text(before + content + rest.partition(END)[2], encoding="utf-8")
    allowed = 0.05 + 3 * (0.05 * 0.95 / studies) ** 0.5
    print(f"{PAGE}: {studies} studies a cell; largest share of errors {100 * worst:.1f} %, allowed {100 * allowed:.1f} %")
    return int(worst > allowed)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000))
