"""One call makes everything; rows read the same in training and in generation."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from modeling_rsmoe import RSMoEError, RSMoEProcessor
from modeling_rsmoe.prompting_rsmoe import TASKS, Prompt
from modeling_rsmoe.sequences_rsmoe import SEQUENCES, by_expert, fill_slots, unpad

from .tiny import tiny_model, tiny_processor, tiny_tokenizer


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
        (Prompt.router("theme", "Is it rural?").text, "Is it rural?"),
        (Prompt.for_expert("object", "Where are the planes?", "").text, "object?"),
        (Prompt.rewrite("Describe.", {"theme": "An airport.", "object": "", "relation": "Near."}).text, "Describe."),
        ("Two lines:\nwhat and where?", "Two lines:\nwhat and where?"),
    ],
)
def test_qformer_reads_the_instruction_only(processor, prompt, instruction):
    """The same function serves training (rendered prompts) and generation."""
    assert processor.read_rendered(processor.render(prompt)) == instruction
    assert processor.read_rendered(processor.render(prompt) + " The answer.<|im_end|>") == instruction


def test_generation_asks_the_qformer_as_training_does(processor, image):
    """Ids of both paths: the rendered row of an expert, and the expert inputs of `generate`."""
    whole = processor(images=image, text="Describe.", return_tensors="pt")
    for i, name in enumerate(processor.experts):
        row = processor(
            images=image, text=processor.render(Prompt.for_expert(name, "Anything?", "").text), return_tensors="pt"
        )
        ids = whole["expert_qformer_input_ids"][0, :, i]
        assert row["qformer_input_ids"][0].tolist() == ids[ids != 0].tolist()


def test_filled_sequences_equal_sequences_of_text(processor, image):
    """What `generate` pastes together token by token is what training tokenizes from text."""
    inputs = processor(images=image, text="Describe.", return_tensors="pt")
    slot = processor.tokenizer.convert_tokens_to_ids("<prompt>")
    prompt = "Where are the planes?"
    texts = {"theme": "An airport.", "object": "Two planes.", "relation": "Side by side."}

    def ids(text):
        return processor.tokenizer(text)["input_ids"]

    def sequences(name):
        return unpad(*(by_expert(inputs[f"{name}_{kind}"]) for kind in ("input_ids", "attention_mask")))[0]

    for name, sequence in zip(processor.experts, sequences("expert")):
        rendered = processor.render(Prompt.for_expert(name, prompt, ""))
        assert fill_slots(sequence, slot, [ids(f" {prompt}")]) == ids(processor.with_image_tokens(rendered))
    rendered = processor.render(Prompt.rewrite("Describe.", texts))
    filled = fill_slots(sequences("rewrite"), slot, [ids(f" {text}") for text in texts.values()])
    assert filled == ids(processor.with_image_tokens(rendered))
    rendered = processor.render(Prompt.rewrite("Describe.", {"theme": "An airport.", "object": "", "relation": ""}))
    filled = fill_slots(sequences("rewrite"), slot, [ids(" An airport."), [], []])
    assert filled == ids(processor.with_image_tokens(rendered))


def test_prompts_are_what_their_rendered_texts_are(processor, image):
    """A prompt knows what its Q-Former reads; of a rendered text the same is read back."""
    prompts = [
        Prompt.base("Describe."),
        Prompt.router("object", "Describe."),
        Prompt.for_expert("theme", "Which?", "theme?"),
        Prompt.rewrite("Describe.", {"theme": "a", "object": "", "relation": "b"}),
    ]
    images = [image] * len(prompts)
    of_prompts = processor(images=images, text=prompts, return_tensors="pt")
    rendered = [processor.render(prompt) for prompt in prompts]
    of_texts = processor(images=images, text=rendered, return_tensors="pt")
    assert of_prompts.keys() == of_texts.keys() and "expert_input_ids" not in of_texts
    assert all(torch.equal(of_prompts[name], of_texts[name]) for name in of_texts)
    bare = processor(images=images[:3], text=[prompt.text for prompt in prompts[:3]], return_tensors="pt")
    assert torch.equal(bare["qformer_input_ids"], of_texts["qformer_input_ids"][:3])


def test_image_embeds_in_place_of_images(processor, image):
    """All but the pixels is the same; their number is checked, and both at once are refused."""
    model = tiny_model()
    inputs = processor(images=[image, image], text=["Describe.", "Where?"], return_tensors="pt")
    image_embeds = model.encode_image(inputs["pixel_values"])
    features = processor(image_embeds=image_embeds, text=["Describe.", "Where?"], return_tensors="pt")
    assert features.pop("image_embeds") is image_embeds
    pixels = inputs.pop("pixel_values")
    assert inputs.keys() == features.keys()
    assert all(torch.equal(inputs[name], features[name]) for name in inputs)
    with pytest.raises(ValueError, match="1 <image> tokens and 2 image_embeds"):
        processor(image_embeds=image_embeds, text=processor.render("Describe."), return_tensors="pt")
    with pytest.raises(RSMoEError, match="give one of them"):
        processor(images=image, image_embeds=pixels, text="Describe.")


def test_padding_and_lengths_reach_all_sequences(processor, image):
    arguments = {"padding": "max_length", "max_length": 200, "return_tensors": "pt"}
    inputs = processor(images=image, text="Describe.", **arguments)
    names = ("router", "expert", "rewrite", "template_prompt", "instruction")
    assert {inputs[f"{name}_input_ids"].shape[1] for name in names} == {200}
    assert {inputs[f"{name}_attention_mask"].shape[1] for name in names} == {200}
    model = tiny_model()
    alone = processor(images=image, text="Describe.", return_tensors="pt")
    for side in ("left", "right"):
        padded = processor(images=image, text="Describe.", padding_side=side, **arguments)
        new = [model.generate(**batch, fusion="concat")[0, batch["input_ids"].shape[1] :] for batch in (padded, alone)]
        assert torch.equal(*new)
    with pytest.raises(RSMoEError, match="max_length cuts"):
        processor(image_embeds=torch.zeros(1, 5, 16), text="Describe.", truncation=True, max_length=12)


def test_tasks_go_along(processor, image):
    texts = ["Describe the image.", "Describe this image in detail.", "Is there a road?"]
    inputs = processor(images=[image] * 3, text=texts, return_tensors="pt")
    assert [TASKS[task] for task in inputs["task_ids"]] == ["caption", "detail", "question"]


def test_rows_with_an_adapter_token_get_no_expert_inputs(processor, image):
    row = processor(images=image, text=processor.render(Prompt.router("theme", "Describe.").text), return_tensors="pt")
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


def test_text_before_images_is_refused(processor, image):
    with pytest.raises(
        RSMoEError, match=r"text holds Image, expected strings: the order is processor\(images, text\)"
    ):
        processor("Describe the image.", image, return_tensors="pt")


def test_several_images_in_one_text(processor, image):
    """Refused in words at every door; the base LM alone reads them all."""
    model, other = tiny_model(), Image.new("RGB", (40, 40), "green")
    texts = ["<image><image> Both?", "<image> One?"]
    refused = "one image each.*each image by itself.*expert_inputs=False"
    for given in ([[image, other], [image]], texts), ([image, image], ["<image> One?", "<image> One?", "None?"]):
        default = processor(images=given[0], text=given[1], return_tensors="pt")
        with pytest.raises(RSMoEError, match=refused):
            model.generate(**default)
    with pytest.raises(RSMoEError, match=refused):
        processor(images=[image, other], text=texts[0], expert_inputs=True, return_tensors="pt")
    with pytest.raises(RSMoEError, match="2 images for 1 texts: give one text for each image"):
        processor(images=[[image, other]], text="Both?", return_tensors="pt")
    rows = processor(images=[[image, other], [image]], text=texts, expert_inputs=False, return_tensors="pt")
    assert rows["qformer_input_ids"].shape[0] == 3 and "expert_input_ids" not in rows
    assert (rows["input_ids"] == 259).sum(1).tolist() == [8, 4]
    content = [{"type": "image", "image": image}, {"type": "image", "image": other}, {"type": "text", "text": "Both?"}]
    chat = [{"role": "user", "content": content}]
    arguments = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    with pytest.raises(RSMoEError, match=refused):
        model.generate(**processor.apply_chat_template(chat, **arguments))
    said = processor.apply_chat_template(chat, processor_kwargs={"expert_inputs": False}, **arguments)
    with torch.no_grad():
        logits = model(**said).logits[:, -1]
        for place in range(2):  # each of them is read
            changed = said["pixel_values"].clone()
            changed[place] += 1
            assert (model(**{**said, "pixel_values": changed}).logits[:, -1] - logits).abs().max() > 1e-3
    outputs = model.generate(**said, return_dict_in_generate=True)
    assert outputs.sequences.shape[1] > said["input_ids"].shape[1]
    with pytest.raises(RSMoEError, match="no expert texts.*processor.batch_decode"):
        processor.post_process_generation(outputs)


def test_one_text_for_all_images(processor, image):
    """A string goes to every image of a list, also as features; a text with image tokens stays one."""
    one = processor(images=[image, image], text="Describe.", return_tensors="pt")
    two = processor(images=[image, image], text=["Describe."] * 2, return_tensors="pt")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    embeds = tiny_model().encode_image(one["pixel_values"])
    features = processor(image_embeds=embeds, text=Prompt.base("Describe."), return_tensors="pt")
    assert torch.equal(features["expert_input_ids"], two["expert_input_ids"])
    with pytest.raises(RSMoEError, match=r'without input_ids: .*text="Describe the image."'):
        tiny_model().generate(**processor(images=image, return_tensors="pt"))


def test_expert_inputs_have_their_tokens_in_dimension_1(processor, image):
    """As documented, for tensors and for plain lists: transformers' pipelines pad there."""
    tensors = processor(images=[image, image], text=["Short.", "Is there a road?"], return_tensors="pt")
    lists = processor(images=[image, image], text=["Short.", "Is there a road?"])
    for name in SEQUENCES:
        ids, mask = (tensors[f"{name}_{kind}"] for kind in ("input_ids", "attention_mask"))
        assert ids.shape == mask.shape and ids.shape[0] == 2
        assert ids.ndim == (2 if name in ("rewrite", "instruction") else 3) and ids.shape[2:] in ((), (3,))
        assert lists[f"{name}_input_ids"] == ids.tolist()
    texts = processor.tokenizer.batch_decode(tensors["template_prompt_input_ids"][1].T, skip_special_tokens=True)
    assert texts == [" theme?", " object?", " relation?"]


def test_qformer_positions_follow_the_mask(processor, image):
    """Padding on the right changes nothing, bit for bit, and on the left nothing either."""
    encoder = tiny_model().model.encoder
    texts = ["a?", "is there a road in it?"]
    inputs = processor(images=[image, image], text=texts, expert_inputs=False, return_tensors="pt")
    ids, mask = inputs["qformer_input_ids"], inputs["qformer_attention_mask"]
    embeds = encoder.encode_image(inputs["pixel_values"])
    queries = encoder.query_tokens.weight.expand(2, -1, -1)
    with torch.no_grad():
        counted = encoder.qformer(  # InstructBLIP's own positions: 0, 1, 2, ...
            input_ids=ids,
            attention_mask=torch.cat([torch.ones(2, queries.shape[1], dtype=torch.long), mask], dim=1),
            query_embeds=queries,
            encoder_hidden_states=embeds,
        ).last_hidden_state[:, : queries.shape[1]]
        right = encoder.query_states(image_embeds=embeds, qformer_input_ids=ids, qformer_attention_mask=mask)
        assert mask[0].sum() < mask.shape[1] and torch.equal(right, counted)
        left = {"qformer_input_ids": ids.clone(), "qformer_attention_mask": mask.flip(1)}
        left["qformer_input_ids"][0] = ids[0].roll(int((mask[0] == 0).sum()))
        torch.testing.assert_close(encoder.query_states(image_embeds=embeds, **left), right)


def test_the_llm_s_tokenizer_is_none_of_the_qformer(processor):
    """What transformers loads offline from a repository without qformer_tokenizer/config.json."""
    for tokenizer in (tiny_tokenizer(), processor.tokenizer):
        with pytest.raises(RSMoEError, match="Q-Former's tokenizer is the LLM's.*config.json"):
            RSMoEProcessor(processor.image_processor, tokenizer, tiny_tokenizer())
    inputs = processor(images=torch.rand(3, 28, 28), text="Describe.", return_tensors="pt")
    inputs["qformer_input_ids"][0, 1] = 64
    with pytest.raises(ValueError, match="holds the token 64, and the Q-Former knows 64 tokens"):
        tiny_model()(**inputs)


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
        assert made["expert_input_ids"].shape[::2] == (1, 4) and 265 in made["expert_input_ids"][0, :, 3]
        assert each.tokenizer.decode(made["router_input_ids"][0, :, 3]).count("counting: Describe.") == 1
        assert torch.equal(made["expert_input_ids"][..., :3], three["expert_input_ids"])
        row = each.render(Prompt.for_expert("counting", "How many ships?", "").text)
        assert each.read_rendered(row) == "how many?"
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
