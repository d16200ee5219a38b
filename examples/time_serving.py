"""How much faster a server answers many requests at once than one after the other, and whether the answers agree.

    rsmoe serve --model nano &
    python examples/time_serving.py http://127.0.0.1:8000/v1 tiles/*.png

Each image is described once alone and once with all others.
"""

import argparse
import base64
import mimetypes
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from openai import OpenAI


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="its address, up to /v1")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--max-tokens", type=int, default=24)
    arguments = parser.parse_args(argv)
    client = OpenAI(base_url=arguments.server, api_key="none", timeout=None)
    model = client.models.list().data[0].id

    def describe(image: Path) -> str:
        media_type = mimetypes.guess_type(image)[0] or "image/png"
        url = f"data:{media_type};base64,{base64.b64encode(image.read_bytes()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Describe the image."}]
        messages = [{"role": "user", "content": content}]
        answer = client.chat.completions.create(model=model, messages=messages, max_tokens=arguments.max_tokens)
        return answer.choices[0].message.content

    describe(arguments.images[0])  # the first request is slow
    began = time.perf_counter()
    alone = [describe(image) for image in arguments.images]
    one_by_one = time.perf_counter() - began
    began = time.perf_counter()
    with ThreadPoolExecutor(len(arguments.images)) as pool:
        together = list(pool.map(describe, arguments.images))
    at_once = time.perf_counter() - began
    same = sum(first == second for first, second in zip(alone, together))
    print(
        f"{len(alone)} requests, one by one {one_by_one:.1f} s, at once {at_once:.1f} s: "
        f"{at_once / one_by_one:.3f} of it"
    )
    print(f"{same} of {len(alone)} texts are the same, {len(set(alone))} different ones")


if __name__ == "__main__":
    main()
