"""Tests of plain `generate`: what transformers' GenerationTesterMixin asks of a model, in our words.

That mixin lives in `tests/generation`, which the source distribution of transformers does not carry (source.py). This
class takes its place in the common tests (stand_ins.py). The rows are those of the model tester: several experts, the
router and no expert in one batch, an image each, left padding. The weights are drawn wide, so that greedy decoding
says something else in every row: a model that says the same everywhere would pass any of these tests.
"""

import copy

import torch
from transformers import set_seed
from transformers.generation import BaseStreamer


class TokenRecorder(BaseStreamer):
    """Keeps what generate streams: the prompt first, then one tensor of tokens for each step."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


class GenerationTests:
    """Mixin for a test case with `model_tester` and `all_generative_model_classes`."""

    max_new_tokens = 5

    def generation_models(self):
        """Yields (model in eval mode with wide weights and no end token, inputs) for each class that can generate."""
        for model_class in self.all_generative_model_classes:
            set_seed(7)
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            model = model_class(copy.deepcopy(config)).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() > 1:
                        parameter.normal_(0, 0.3)
            # As in every checkpoint, no mark is generated: without a cache, a drawn <image> is one image too many.
            marks = [config.image_token_id, config.prompt_token_id, *config.adapter_token_ids]
            model.generation_config.suppress_tokens = marks
            model.generation_config.eos_token_id = None
            model.generation_config.pad_token_id = self.model_tester.pad_token_id
            model.generation_config.do_sample = False
            yield model, inputs

    def generate(self, model, inputs, **kwargs):
        """Calls generate for `max_new_tokens` tokens, exactly."""
        kwargs = {"max_new_tokens": self.max_new_tokens, "min_new_tokens": self.max_new_tokens, **kwargs}
        return model.generate(**inputs, **kwargs)

    def new_tokens(self, model, inputs, **kwargs):
        """Returns only the tokens that `generate` adds: `[rows, max_new_tokens]`."""
        return self.generate(model, inputs, **kwargs)[:, inputs["input_ids"].shape[1] :]

    def test_greedy_generate(self):
        for model, inputs in self.generation_models():
            sequences = self.generate(model, inputs)
            rows, length = inputs["input_ids"].shape
            self.assertEqual(tuple(sequences.shape), (rows, length + self.max_new_tokens))
            self.assertTrue(torch.equal(sequences[:, :length], inputs["input_ids"]))
            self.assertGreater(len({tuple(row) for row in sequences[:, length:].tolist()}), rows // 2)

    def test_greedy_generate_dict_outputs(self):
        for model, inputs in self.generation_models():
            model.set_attn_implementation("eager")
            out = self.generate(
                model,
                inputs,
                return_dict_in_generate=True,
                output_scores=True,
                output_logits=True,
                output_hidden_states=True,
                output_attentions=True,
            )
            rows, length = inputs["input_ids"].shape
            vocab = model.config.get_text_config().vocab_size
            layers = self.model_tester.num_hidden_layers
            for steps in (out.scores, out.logits, out.hidden_states, out.attentions):
                self.assertEqual(len(steps), self.max_new_tokens)
            for scores in out.logits:
                self.assertEqual(tuple(scores.shape), (rows, vocab))
            for step, (hidden, attentions) in enumerate(zip(out.hidden_states, out.attentions)):
                queries = length if step == 0 else 1
                self.assertEqual([len(hidden), len(attentions)], [layers + 1, layers])
                self.assertEqual(tuple(hidden[0].shape[:2]), (rows, queries))
                self.assertEqual(tuple(attentions[0].shape[-2:]), (queries, length + step))
            self.assertEqual(len(out.past_key_values), layers)
            self.assertEqual(out.past_key_values.get_seq_length(), length + self.max_new_tokens - 1)

    def test_greedy_generate_equals_a_loop_without_cache(self):
        for model, inputs in self.generation_models():
            grown = dict(inputs)
            for _ in range(self.max_new_tokens):
                with torch.no_grad():
                    logits = model(**grown, use_cache=False).logits[:, -1:]
                logits[..., model.generation_config.suppress_tokens] = -torch.inf
                token = logits.argmax(-1)
                grown["input_ids"] = torch.cat([grown["input_ids"], token], 1)
                grown["attention_mask"] = torch.cat([grown["attention_mask"], torch.ones_like(token)], 1)
            self.assertTrue(torch.equal(self.generate(model, inputs), grown["input_ids"]))

    def test_generate_without_cache(self):
        for model, inputs in self.generation_models():
            for beams in (1, 3):
                cached = self.generate(model, inputs, use_cache=True, num_beams=beams)
                self.assertTrue(torch.equal(self.generate(model, inputs, use_cache=False, num_beams=beams), cached))

    def test_generate_rows_one_by_one(self):
        for model, inputs in self.generation_models():
            together = self.new_tokens(model, inputs)
            for row in range(len(together)):
                alone = self.new_tokens(model, {name: value[row : row + 1] for name, value in inputs.items()})
                self.assertEqual(alone[0].tolist(), together[row].tolist(), f"row {row}")

    def test_left_padding_compatibility(self):
        for model, inputs in self.generation_models():
            rows = len(inputs["input_ids"])
            padded = dict(inputs)
            pad = torch.full((rows, 4), self.model_tester.pad_token_id)
            padded["input_ids"] = torch.cat([pad, inputs["input_ids"]], 1)
            padded["attention_mask"] = torch.cat([torch.zeros_like(pad), inputs["attention_mask"]], 1)
            with torch.no_grad():
                logits = [model(**rows).logits[:, -1] for rows in (padded, inputs)]
            torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
            self.assertTrue(torch.equal(self.new_tokens(model, padded), self.new_tokens(model, inputs)))

    def test_beam_search_generate(self):
        for model, inputs in self.generation_models():
            rows, length = inputs["input_ids"].shape
            out = self.generate(
                model,
                inputs,
                num_beams=3,
                num_return_sequences=2,
                return_dict_in_generate=True,
                output_scores=True,
            )
            self.assertEqual(tuple(out.sequences.shape), (2 * rows, length + self.max_new_tokens))
            scores = model.compute_transition_scores(
                out.sequences, out.scores, out.beam_indices, normalize_logits=False
            ).sum(1)
            torch.testing.assert_close(scores / self.max_new_tokens, out.sequences_scores, atol=1e-3, rtol=1e-3)
            greedy = self.generate(model, inputs, return_dict_in_generate=True, output_scores=True)
            of_greedy = model.compute_transition_scores(greedy.sequences, greedy.scores, normalize_logits=True).sum(1)
            best = scores.view(rows, 2)
            self.assertTrue((best[:, 0] >= best[:, 1]).all())
            self.assertGreaterEqual(best[:, 0].mean().item(), of_greedy.mean().item() - 1e-3)

    def test_sample_generate(self):
        for model, inputs in self.generation_models():
            rows, length = inputs["input_ids"].shape
            for beams in (1, 2):
                drawn = []
                for seed in (0, 0, 1):
                    set_seed(seed)
                    settings = {"do_sample": True, "temperature": 3.0, "num_beams": beams, "num_return_sequences": 2}
                    drawn.append(self.generate(model, inputs, **settings))
                self.assertEqual(tuple(drawn[0].shape), (2 * rows, length + self.max_new_tokens))
                self.assertTrue(torch.equal(drawn[0], drawn[1]))
                self.assertFalse(torch.equal(drawn[0], drawn[2]))

    def test_generate_stops_at_the_end_token(self):
        for model, inputs in self.generation_models():
            free = self.new_tokens(model, inputs)
            end = free[0, 1].item()
            ended = self.new_tokens(model, inputs, eos_token_id=end, min_new_tokens=0)
            for row, tokens in zip(free.tolist(), ended.tolist()):
                stop = row.index(end) + 1 if end in row else len(row)
                expected = row[:stop] + [self.model_tester.pad_token_id] * (len(tokens) - stop)
                self.assertEqual(tokens, expected[: len(tokens)])

    def test_generate_from_inputs_embeds(self):
        for model, inputs in self.generation_models():
            others = {name: value for name, value in inputs.items() if name != "input_ids"}
            with torch.no_grad():
                embeds = model.get_input_embeddings()(inputs["input_ids"])
            from_ids = self.new_tokens(model, inputs).tolist()
            both = model.generate(**inputs, inputs_embeds=embeds, max_new_tokens=self.max_new_tokens)
            self.assertEqual(both[:, -self.max_new_tokens :].tolist(), from_ids)
            for beams in (1, 3):
                expected = self.new_tokens(model, inputs, num_beams=beams).tolist()
                alone = self.generate(model, {"inputs_embeds": embeds, **others}, num_beams=beams)
                self.assertEqual(alone.tolist(), expected)
            is_mark = inputs["input_ids"].unsqueeze(-1).lt(model.config.prompt_token_id + 5)
            random = torch.where(is_mark, embeds, torch.rand_like(embeds))
            changed = self.generate(model, {"inputs_embeds": random, **others})
            self.assertNotEqual(changed.tolist(), from_ids)

    def test_packed_rows_equal_rows_of_their_own(self):
        """What comes after each sequence, when all are packed into one row without a mask."""
        for model, inputs in self.generation_models():
            kept = inputs["attention_mask"].bool()
            positions = torch.cat([torch.arange(length) for length in kept.sum(1).tolist()])
            packed = {**inputs, "input_ids": inputs["input_ids"][kept][None], "position_ids": positions[None]}
            del packed["attention_mask"]
            with torch.no_grad():
                logits = model(**packed).logits[0, kept.sum(1).cumsum(0) - 1]
            logits[:, model.generation_config.suppress_tokens] = -torch.inf
            self.assertEqual(logits.argmax(-1).tolist(), self.new_tokens(model, inputs)[:, 0].tolist())

    def test_generate_continue_from_past_key_values(self):
        for model, inputs in self.generation_models():
            whole = self.generate(model, inputs, max_new_tokens=6, min_new_tokens=6)
            first = self.generate(model, inputs, max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True)
            # The cache holds the images already.
            again = {name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask")}
            again["input_ids"] = first.sequences
            again["attention_mask"] = torch.cat(
                [inputs["attention_mask"], torch.ones(len(first.sequences), 3, dtype=torch.long)], 1
            )
            rest = model.generate(**again, past_key_values=first.past_key_values, max_new_tokens=3, min_new_tokens=3)
            self.assertTrue(torch.equal(rest, whole))

    def test_generate_with_static_cache(self):
        for model, inputs in self.generation_models():
            static = self.generate(model, inputs, cache_implementation="static", disable_compile=True)
            self.assertTrue(torch.equal(static, self.generate(model, inputs)))

    def test_prompt_lookup_decoding_matches_greedy_search(self):
        for model, inputs in self.generation_models():
            for row in range(len(inputs["input_ids"])):
                one = {name: value[row : row + 1] for name, value in inputs.items()}
                guessed = self.generate(model, one, prompt_lookup_num_tokens=2)
                self.assertTrue(torch.equal(guessed, self.generate(model, one)), f"row {row}")

    def test_assisted_decoding_matches_greedy_search(self):
        for model, inputs in self.generation_models():
            assistant = copy.deepcopy(model)
            assistant.generation_config.num_assistant_tokens = 2
            for row in range(len(inputs["input_ids"])):
                one = {name: value[row : row + 1] for name, value in inputs.items()}
                guessed = self.generate(model, one, assistant_model=assistant)
                self.assertTrue(torch.equal(guessed, self.generate(model, one)), f"row {row}")

    def test_forward_with_logits_to_keep(self):
        for model, inputs in self.generation_models():
            with torch.no_grad():
                every = model(**inputs).logits
                last = model(**inputs, logits_to_keep=1).logits
                some = model(**inputs, logits_to_keep=torch.tensor([0, 3])).logits
            torch.testing.assert_close(last, every[:, -1:], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(some, every[:, [0, 3]], atol=1e-5, rtol=1e-5)

    def test_generate_streams_the_tokens(self):
        for model, inputs in self.generation_models():
            one = {name: value[:1] for name, value in inputs.items()}
            streamer = TokenRecorder()
            sequences = self.generate(model, one, streamer=streamer)
            self.assertEqual(streamer.tokens, sequences[0].tolist())
            self.assertTrue(streamer.ended)

    def test_generate_leaves_its_inputs_alone(self):
        for model, inputs in self.generation_models():
            before = copy.deepcopy(inputs)
            self.generate(model, inputs, num_beams=2)
            self.assertEqual(inputs.keys(), before.keys())
            for name, value in inputs.items():
                self.assertTrue(torch.equal(value, before[name]), name)

    def test_generate_refuses_unknown_model_kwargs(self):
        for model, inputs in self.generation_models():
            with self.assertRaisesRegex(ValueError, "not_an_input"):
                self.generate(model, inputs, not_an_input=torch.zeros(1))
