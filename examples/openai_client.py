"""Call a running gateway with the official client: python examples/openai_client.py http://127.0.0.1:8080/v1"""

from __future__ import annotations

import sys

from openai import OpenAI


def main(base_url: str) -> None:
    client = OpenAI(base_url=base_url, api_key="unused")
    reply = client.chat.completions.create(
        model="stepladder",
        messages=[{"role": "user", "content": "What is 12 + 7?"}],
        temperature=0,
        extra_body={"stepladder": {"lambda": 5.0, "explain": True}},
    )
    told = reply.model_extra["stepladder"] if reply.model_extra else {}
    print(reply.choices[0].message.content)
    print(f"written by {reply.model}, predicted quality {told['predicted_quality']:.2f}, cost {told['cost']:.2f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080/v1")
