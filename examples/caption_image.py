"""Caption one image from Python and see why: the router's prompts, each expert's text, the final text.

python examples/caption_image.py CHECKPOINT IMAGE
"""

import sys

from transformers import AutoModelForImageTextToText, AutoProcessor


def main(checkpoint: str, image: str) -> dict:
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    inputs = processor(images=image, text="Describe the image.", return_tensors="pt")
    outputs = model.generate(**inputs, return_dict_in_generate=True)
    result = processor.post_process_generation(outputs)[0]
    for name, prompt in result["router_prompts"].items():
        print(f"{name}: {prompt}\n    {result['expert_texts'][name]}")
    print(result["text"])
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
