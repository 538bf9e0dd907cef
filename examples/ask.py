"""Ask the embedded ladder from plain Python, at several λ."""

from __future__ import annotations

import stepladder


def main() -> None:
    with stepladder.load("nano") as ladder:
        for lam in (1.0, 5.0, 20.0):
            answer = ladder.ask("What is 12 + 7?", lam=lam, temperature=0)
            print(f"λ={lam:<4g} {answer.stage:<7} cost {answer.cost:.2f}  {answer.text}")


if __name__ == "__main__":
    main()
