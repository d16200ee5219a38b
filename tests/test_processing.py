"""One call makes everything; rows read the same in training and in generation."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from modeling_rsmoe import RSMoEError, RSMoEProcessor
from modeling_rsmoe.processing_rsmoe import expert_prompt, rewrite_request, router_prompt

from .tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


def test_one_image_in_every_form(processor, image, tmp_path):
    path = tmp_path / "tile.png"
    image.save(path)
    array = np.asarray(image)
    forms = [
        image,
        str(path),
        path,
        array,
        torch.from_numpy(array.copy()),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
    ]
    pixels = [processor(images=form, text="Describe.", return_tensors="pt")["pixel_values"] for form in forms]
    for other in pixels[1:]:
        torch.testing.assert_close(other, pixels[0])
    assert pixels[0].shape == (1, 3, 28, 28)


def test_bare_instruction_equals_chat(processor, image):
    bare = processor(images=image, text="What is it?", return_tensors="pt")
    chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]}]
    said = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert bare.keys() == said.keys()
    assert all(torch.equal(bare[name], said[name]) for name in bare)


def test_a_row_is_written_like_this(processor):
    assert processor.render("Describe.") == "<|im_start|>user\n<image> Describe.<|im_end|>\n<|im_start|>assistant\n"
    answered = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "A ship."}]
    text = processor.apply_chat_template(answered)
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n A ship.<|im_end|>"


def test_left_padding(processor, image):
    batch = processor(images=[image, image], text=["Short.", "A much longer one."], return_tensors="pt")
    assert batch["attention_mask"][0, 0] == 0 and batch["attention_mask"][:, -1].all()


@pytest.mark.parametrize(
    ("prompt", "instruction"),
    [
        ("Describe the image.", "Describe the image."),
        (router_prompt("theme", "Is it rural?"), "Is it rural?"),
        (expert_prompt("object", "Where are the planes?"), "object?"),
        (rewrite_request("Describe.", {"theme": "An airport.", "object": "", "relation": "Near."}), "Describe."),
        ("Two lines:\nwhat and where?", "Two lines:\nwhat and where?"),
    ],
)
def test_qformer_reads_the_instruction_only(processor, prompt, instruction):
    """The same function serves training (rendered prompts) and generation."""
    assert processor.qformer_instruction(processor.render(prompt)) == instruction
    assert processor.qformer_instruction(processor.render(prompt) + " The answer.<|im_end|>") == instruction


def test_generation_asks_the_qformer_as_training_does(processor, image):
    """Ids of both paths: the rendered row of an expert, and the expert inputs of `generate`."""
    whole = processor(images=image, text="Describe.", return_tensors="pt")
    for i, name in enumerate(processor.experts):
        row = processor(images=image, text=processor.render(expert_prompt(name, "Anything?")), return_tensors="pt")
        ids = whole["expert_qformer_input_ids"][0, i]
        assert row["qformer_input_ids"][0].tolist() == ids[ids != 0].tolist()


def test_filled_rows_equal_rows_of_text(processor, image):
    """What `generate` pastes together token by token is what training tokenizes from text."""
    model = tiny_model()
    whole = processor(images=image, text="Describe.", return_tensors="pt")
    prompt, parts = (
        "Where are the planes?",
        {"theme": "An airport.", "object": "Two planes.", "relation": "Side by side."},
    )

    def ids(text):
        return processor.tokenizer(text)["input_ids"]

    rows, _ = model._padded(model._filled(whole["expert_input_ids"][0], [[ids(f" {prompt}")]] * 3), "cpu")
    for name, row in zip(processor.experts, rows.tolist()):
        text = processor.with_image_tokens(processor.render(expert_prompt(name, prompt)))
        assert [i for i in row if i] == ids(text)
    rows, _ = model._padded(
        model._filled(whole["rewrite_input_ids"], [[ids(f" {part}") for part in parts.values()]]), "cpu"
    )
    text = processor.with_image_tokens(processor.render(rewrite_request("Describe.", parts)))
    assert rows[0].tolist() == ids(text)
    rows, _ = model._padded(model._filled(whole["rewrite_input_ids"], [[ids(" An airport."), [], []]]), "cpu")
    empty = rewrite_request("Describe.", {"theme": "An airport.", "object": "", "relation": ""})
    assert rows[0].tolist() == ids(processor.with_image_tokens(processor.render(empty)))


def test_rows_with_a_reader_get_no_expert_inputs(processor, image):
    row = processor(images=image, text=processor.render(router_prompt("theme", "Describe.")), return_tensors="pt")
    assert "expert_input_ids" not in row and "qformer_input_ids" in row


def test_training_switches_expert_inputs_off_without_saving_it(image, tmp_path):
    processor = tiny_processor()
    processor.makes_expert_inputs = False
    assert "expert_input_ids" not in processor(images=image, text="Describe.", return_tensors="pt")
    processor.save_pretrained(tmp_path)
    assert "expert_input_ids" in RSMoEProcessor.from_pretrained(tmp_path)(
        images=image, text="Describe.", return_tensors="pt"
    )


def test_saved_and_loaded_again(processor, image, tmp_path):
    processor.save_pretrained(tmp_path)
    again = RSMoEProcessor.from_pretrained(tmp_path)
    ours, theirs = (p(images=image, text="Describe.", return_tensors="pt") for p in (processor, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.experts == ["theme", "object", "relation"]


def test_image_marks_must_match(processor, image):
    with pytest.raises(ValueError, match="1 <image> tokens and 2 images"):
        processor(images=[image, image], text="<image> Describe.", return_tensors="pt")
    with pytest.raises(ValueError, match="0 <image> tokens and 3 images"):
        processor(images=[image] * 3, text=["One.", "Two."], return_tensors="pt")


def test_several_images_in_one_text(processor, image):
    rows = processor(
        images=[[image, image], [image]], text=["<image><image> Both?", "<image> One?"], return_tensors="pt"
    )
    assert rows["qformer_input_ids"].shape[0] == 3 and "expert_input_ids" not in rows
    assert (rows["input_ids"] == 259).sum(1).tolist() == [8, 4]
    with torch.no_grad():
        assert tiny_model()(**rows).logits.shape[0] == 2


def test_missing_file_is_named(processor, tmp_path):
    with pytest.raises(RSMoEError, match="nowhere.png"):
        processor(images=tmp_path / "nowhere.png", text="Describe.", return_tensors="pt")


def test_expert_without_an_instruction_is_refused():
    with pytest.raises(RSMoEError, match=r"no instruction for \['counting'\]"):
        tiny_processor(experts=["theme", "counting"])


def test_pad_is_not_the_end_token(processor):
    """Else a model learns, or is told, that padding ends a text."""
    assert processor.tokenizer.pad_token_id != processor.tokenizer.eos_token_id


def test_added_expert(image, tmp_path):
    processor, before = tiny_processor(), tiny_processor()
    assert processor.add_expert("counting", "how many?") == 265 == len(before.tokenizer)
    processor.save_pretrained(tmp_path)
    for each in (processor, RSMoEProcessor.from_pretrained(tmp_path)):
        assert each.experts == ["theme", "object", "relation", "counting"]
        made, three = (p(images=image, text="Describe.", return_tensors="pt") for p in (each, before))
        assert made["expert_input_ids"].shape[:2] == (1, 4) and 265 in made["expert_input_ids"][0, 3]
        assert each.tokenizer.decode(made["router_input_ids"][0, 3]).count("counting: Describe.") == 1
        assert torch.equal(made["expert_input_ids"][0, :3], three["expert_input_ids"][0])
        row = each.render(expert_prompt("counting", "How many ships?"))
        assert each.qformer_instruction(row) == "how many?"
        ids = each(images=image, text=row, return_tensors="pt")["input_ids"]
        assert (ids == 265).sum() == 1  # one token, and the space before it belongs to it
        assert torch.equal(
            ids, each(images=image, text=row.replace("> <counting>", "><counting>"), return_tensors="pt")["input_ids"]
        )
    for name, instruction in (("counting", "a?"), ("two words", "a?"), ("other", " ")):
        with pytest.raises(RSMoEError, match="cannot add the expert"):
            processor.add_expert(name, instruction)
    assert len(processor.tokenizer) == 266


def test_tokenizer_of_the_llm_alone(processor, tmp_path):
    """Its folder names nothing of this package, even if the processor itself came from a folder."""
    processor.save_pretrained(tmp_path / "whole")
    loaded = RSMoEProcessor.from_pretrained(tmp_path / "whole")
    loaded.llm_tokenizer().save_pretrained(tmp_path / "alone")
    assert not [file for file in (tmp_path / "alone").glob("*.json") if "rsmoe" in file.read_text().lower()]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "alone")
    chat = [{"role": "user", "content": "Which ships?"}, {"role": "assistant", "content": "A ship."}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == processor.apply_chat_template(chat)
    assert tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    loaded.save_pretrained(tmp_path / "again")  # the processor's own tokenizer is as it was
    assert "RSMoEProcessor" in (tmp_path / "again" / "tokenizer_config.json").read_text()
