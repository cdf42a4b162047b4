"""TRL's GRPO with video that reaches policy and reference, seen once a prompt; no group without a signal counts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOTrainer
from trl.models import prepare_deepspeed, prepare_fsdp, unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler, add_fused_lm_head, disable_dropout_in_model, split_tensor_dict

from videosafety.lmms_eval_tasks.prompted import INSTRUCTION
from videosafety.training_recipes.collate import Encoder
from videosafety.training_recipes.data import DataError, prompt_messages
from videosafety.training_recipes.prefix import Prompt, lay_out, only, packs, prefill, prompt_of
from videosafety.training_recipes.recipe import ParamGroups, Recipe
from videosafety.training_recipes.run import beside
from videosafety.training_recipes.schema import SAFETY_TYPE, Row
from videosafety.training_recipes.shared_video import Seen, inside, join, learns, plain, see

# The released code's turn is the question, Video-R1's template for thinking, and the sentence on labels, which is `prompted.INSTRUCTION`.
# The words of the template are ours.
THINK = " Think first, within <think> </think>, then give the answer within <answer> </answer>."
LABEL = INSTRUCTION
NO_VLLM = """use_vllm is refused. TRL 1.16 gives vLLM the images of a prompt and no videos, so rollouts would be blind while scoring is
not; and it sends every weight by name, of which vLLM's own classes know no alarm tokens. Leave it out: rollouts are made by generate(),
with each prompt prefilled once for all its answers. To serve a trained model with vLLM, fold it first (`videosafety fold`)."""
LOSSES = ("grpo", "dr_grpo", "dapo")
SAME = ("prompt", "history", "videos", "images", "problem_type")  # rows that agree in these have one prompt
SAME_REWARD = 1e-6  # rewards this near are equal: their differences are float32's


class VideoGRPOTrainer(ParamGroups, GRPOTrainer):
    """GRPO (arXiv 2402.03300) on rows with video, images or text alone.

    What differs from TRL's trainer, which would sample with the video and score without it:

    * Each distinct prompt of a generation batch is encoded once, by evaluation's code; each distinct video goes through the vision tower
      once, and sampling, old and new log-probabilities and the reference share its features. Only where tower or projector learn does
      each pass see for itself, once a prompt.
    * The prompt is run once for all its answers: they are sampled from copies of its cache, and scored behind one copy of it
      (`prefix.lay_out`). Under flash attention and sliding windows they are scored row by row instead.
    * Completions of a prompt stay together: batches are not shuffled after sampling, only the order of prompts is.
    * Groups whose rewards are all the same, and completions that no reward function could score, count for nothing: they give no gradient
      and are in no denominator; their share is logged (`frac_zero_std`, `frac_unscored`). Denominators are those of the whole optimiser
      step on all processes. A step in which nothing counts changes nothing, neither by momentum nor by weight decay.
    * Special tokens other than those that end an answer are never sampled (`suppress_tokens`). Log-probabilities are those of the full
      softmax nonetheless.

    Args:
        model: what learns; with LoRA a PeftModel. reference: the start checkpoint, loaded anew, to stay near to; None with LoRA, where it
            is the model with the adapter off, and with beta = 0.
        rows: of stage grpo. encoder: of `collate`. args: a GRPOConfig.
        think, label: are added to the last user turn, `label` in safety rows alone; `{medium}` is "video" or "image". Reward functions get
            the bare question as the column `query`.

    Raises:
        ValueError: settings that cannot be; DataError: fewer rows than one generation batch takes.
    """

    # What TRL sets, where its annotations (those of Trainer, and of options that may be unset) say less than holds here.
    args: Any
    model: Any
    train_dataset: Any
    num_generations: Any
    num_generations_eval: Any
    num_iterations: Any
    max_completion_length: Any
    ref_model: Any
    pad_token_id: Any
    shuffle_dataset: Any
    _buffered_inputs: Any

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: Any,
        rows: Sequence[Row],
        encoder: Encoder,
        recipe: Recipe,
        *,
        reference: Any = None,
        eval_rows: Sequence[Row] | None = None,
        think: str = THINK,
        label: str = LABEL,
        **others: Any,
    ) -> None:
        check(args, len(rows), wants_reference=not hasattr(model, "peft_config"), has_reference=reference is not None)
        self.encoder, self.rows, self.think, self.label = encoder, rows, think, label
        self._rows: list[Row] = []  # of the generation batch at hand, and their prompts
        self._prompts: list[Prompt] = []
        self._rewards = torch.empty(0)
        self._counted = 0.0  # completions that count in this optimiser step
        args.remove_unused_columns = False
        args.generation_kwargs = (args.generation_kwargs or {}) | {"suppress_tokens": never_sampled(model, encoder.tokenizer, args)}
        beta, args.beta = args.beta, 0.0  # or TRL would load a reference itself, with whatever code the checkpoint brings along
        try:
            super().__init__(
                model=model,
                reward_funcs=reward_funcs,
                args=args,
                train_dataset=Dataset.from_list(list(rows)),
                eval_dataset=None if eval_rows is None else Dataset.from_list(list(eval_rows)),
                processing_class=encoder.processor,
                recipe=recipe,
                **others,
            )
        finally:
            args.beta = beta
        self.beta = beta
        self._learns = learns(self.model)
        if self._learns and self.is_fsdp_enabled:
            raise ValueError("vision and projector cannot learn under FSDP: they run outside of the model's forward here; use DDP or ZeRO")
        self._packs = packs(self.model)
        self._additive = self.model.dtype if plain(self.model).config.get_text_config()._attn_implementation == "eager" else None
        if beta and reference is not None:
            self._prepare_reference(reference.requires_grad_(False))

    def _prepare_reference(self, reference: Any) -> None:
        """As TRL does with the one that it loads."""
        if self.args.disable_dropout:
            disable_dropout_in_model(reference)
        add_fused_lm_head(reference, temperature=self.temperature, cast_lm_head_to_fp32=self.args.cast_lm_head_to_fp32)
        if self.is_deepspeed_enabled:
            self.ref_model = prepare_deepspeed(reference, self.accelerator)
        elif self.is_fsdp_enabled:
            self.ref_model = prepare_fsdp(reference, self.accelerator)
        else:
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)

    # --- prompts ---------------------------------------------------------------------------------------------------------------------

    def asked(self, row: Row) -> Row:
        """The row with the instructions at the end of its prompt."""
        safety = row["problem_type"] in (None, SAFETY_TYPE)
        medium = "image" if row["images"] and not row["videos"] else "video"
        return row | {"prompt": row["prompt"] + self.think + (self.label.format(medium=medium) if safety else "")}  # type: ignore[return-value]

    def _encode(self, rows: Sequence[Row]) -> list[Prompt]:
        """The prompt of each row; rows that agree share one."""
        known: dict[str, Prompt] = {}
        prompts = []
        for row in rows:
            key = json.dumps([row[name] for name in SAME])  # type: ignore[literal-required]
            if key not in known:
                known[key] = self._encoded(row)
            prompts.append(known[key])
        return prompts

    @torch.no_grad()
    def _encoded(self, row: Row) -> Prompt:
        media = json.dumps([row["videos"], row["images"]])
        prompt = prompt_of(self.model, self.encoder.prompts([self.asked(row)]), media)
        prompt.inputs = {key: self._on_device(value) for key, value in prompt.inputs.items()}
        return prompt

    @torch.no_grad()
    def probe(self, rows: Sequence[Row]) -> dict[str, Any]:
        """For `dry_run`: one micro-batch of these prompts, with the references as answers, and the tokens that it has at the most."""
        self._prompts = self._encode(rows)
        self._see(self.model)
        answers = [torch.tensor(self.encoder.answer(str(row["reference"] or ""))) for row in rows]
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in answers], batch_first=True)
        ids = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True).to(self.accelerator.device)
        logps, _ = self._score(self.model, ids, mask.bool().to(ids.device), range(len(rows)))
        prompts = max(sum(len(prompt.ids) for prompt in self._prompts), 1)
        tokens = prompts + self.args.per_device_train_batch_size * self.max_completion_length
        found = {"tokens": tokens, "prompt_tokens": prompts, "packed": self._packs, "reference_logp": float(logps.sum() / mask.sum())}
        return found | beside(self.ref_model)

    def _on_device(self, value: Any) -> Any:
        return value.to(self.accelerator.device) if torch.is_tensor(value) else value

    def _see(self, model: Any) -> None:
        """Keep the features of the generation batch, and let go of the pixels. Nothing is kept where the tower learns."""
        if self._learns:
            return
        known: dict[str, Seen] = {}
        for prompt in self._prompts:
            if prompt.media not in known:
                known[prompt.media] = inside(model, partial(see, model, prompt.inputs)) if prompt.seen is None else prompt.seen
            prompt.seen, prompt.inputs = known[prompt.media], {}

    # --- sampling --------------------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        return EpochSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """As TRL's, without its shuffle, which would part the answers to one prompt."""
        if not self.model.training:
            return self._generate_and_score_completions(generation_batch)
        steps = self.args.steps_per_generation
        if self._buffered_inputs is None or self._step % (steps * self.num_iterations) == 0:
            self._buffered_inputs = split_tensor_dict(self._generate_and_score_completions(generation_batch), steps)
        return self._buffered_inputs[self._step % steps]

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:  # type: ignore[override]
        self._rows, self._prompts = inputs, self._encode(inputs)
        out = super()._generate_and_score_completions([{"prompt": prompt_messages(self.asked(row))} for row in inputs])
        out["prompts"] = self._prompts
        return self._leave_out(out)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[Any, None, dict[str, Any]]:
        return [prompt.ids.tolist() for prompt in self._prompts], None, {}

    def _generate_single_turn(self, prompt_ids: Any, *others: Any, **more: Any) -> tuple[list[list[int]], None]:
        """TRL's, from prompts that were run once each."""
        distinct = list({id(prompt): prompt for prompt in self._prompts}.values())
        number = {id(prompt): n for n, prompt in enumerate(distinct)}
        owners = [number[id(prompt)] for prompt in self._prompts]
        settings = {
            "gather_deepspeed3_params": self.args.ds3_gather_for_generation,
            "generation_kwargs": self.generation_kwargs,
            "gradient_checkpointing_kwargs": self.args.gradient_checkpointing_kwargs,
        }
        with (
            unwrap_model_for_generation(self.model_wrapped, self.accelerator, **settings) as model,
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
            self.accelerator.autocast(),
        ):
            self._see(model)
            pad, device = self._tokenizer.pad_token_id, self.accelerator.device
            start = inside(model, lambda: prefill(model, distinct, owners, pad, device))
            ids = model.generate(**start, generation_config=self.generation_config)[:, start["input_ids"].shape[1] :]
        return [self._until_end(row) for row in ids.tolist()], None

    def _until_end(self, ids: list[int]) -> list[int]:
        """Up to and with the first token that ends an answer."""
        end = next((place for place, token in enumerate(ids) if token in self.eos_token_ids), len(ids))
        return ids[: end + 1]

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        """TRL's, with every key of the rows as a column, and the bare question as `query`."""
        columns = [{key: value for key, value in row.items() if key != "prompt"} | {"query": row["prompt"]} for row in self._rows]
        self._rewards = super()._calculate_rewards(columns, prompts, completions, completion_ids_list)
        return self._rewards

    # --- what counts -----------------------------------------------------------------------------------------------------------------

    def _leave_out(self, out: dict[str, Any]) -> dict[str, Any]:
        """Take completions out that teach nothing, and give the others the weight that this leaves them (`scale`)."""
        mode = "train" if self.model.training else "eval"
        generations = self.num_generations if mode == "train" else self.num_generations_eval
        mask = out["completion_mask"]
        counts, varied, scored = counting(self._rewards, self.reward_weights, generations)
        self._metrics[mode]["frac_zero_std"].append(1 - varied.float().mean().item())
        self._metrics[mode]["frac_unscored"].append(1 - scored.float().mean().item())
        first = self.accelerator.process_index * len(mask)
        mine = counts[first : first + len(mask)].to(mask.device) & mask.bool().any(1)
        out["completion_mask"] = mask * mine[:, None]
        out["advantages"] = out["advantages"] * mine
        out["num_items_in_batch"] = self.accelerator.gather(out["completion_mask"].sum()).sum()
        # The rows over which a loss is averaged: those of one optimiser step.
        share = self.args.steps_per_generation // self.args.gradient_accumulation_steps if mode == "train" else 1
        rows = len(mask) // share
        left = self.accelerator.reduce(mine.view(-1, rows).sum(1).float(), reduction="sum")
        out["counted"] = left.repeat_interleave(rows)
        out["scale"] = torch.where(left > 0, rows * self.accelerator.num_processes / left.clamp(min=1), 0).repeat_interleave(rows)
        return out

    def training_step(self, model: Any, *others: Any) -> torch.Tensor:
        loss = super().training_step(model, *others)
        if self.accelerator.sync_gradients:
            if not self._counted:  # no gradient at all is not a gradient of 0: AdamW then leaves a weight as it is
                self.model.zero_grad(set_to_none=True)
            self._counted = 0.0
        return loss

    # --- scoring ---------------------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        self._prompts = inputs["prompts"]
        self._counted += float(inputs["counted"][0]) * self.model.training
        loss = super()._compute_loss(model, inputs)
        return loss if self.loss_type == "dapo" else loss * inputs["scale"][0]  # TRL divides dapo's by tokens that count already

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Log-probabilities (rows, tokens) of completions, 0 where there is no token that counts; entropies likewise, if asked for.

        Passes without gradients take a whole group at once, since they keep nothing; every process makes as many passes.
        """
        ids, mask = input_ids[:, -logits_to_keep:], attention_mask[:, -logits_to_keep:].bool()
        size = len(ids) if batch_size is None else max(batch_size, self.num_generations)
        found = [self._score(model, ids, mask, range(at, min(at + size, len(ids)))) for at in range(0, len(ids), size)]
        logps, entropies = (torch.cat(parts) for parts in zip(*found, strict=True))
        return logps, entropies if compute_entropy else None, None

    def _score(self, model: Any, ids: torch.Tensor, mask: torch.Tensor, rows: range) -> tuple[torch.Tensor, torch.Tensor]:
        own = {row: ids[row][mask[row]].cpu() for row in rows if mask[row].any()}
        own = own or {rows[0]: ids[rows[0], :1].cpu()}  # nothing counts, but every process has its part in every pass
        groups: dict[int, tuple[Prompt, list[tuple[int, torch.Tensor]]]] = {}
        for row, answer in own.items():
            prompt = self._prompts[row]
            key = id(prompt) if self._packs else row
            groups.setdefault(key, (prompt, []))[1].append((row - rows.start, answer))
        layout = lay_out(list(groups.values()), self._tokenizer.pad_token_id, ids.device, self._additive)
        with self.accelerator.autocast():
            seen = [see(model, prompt.inputs) if prompt.seen is None else prompt.seen for prompt, _ in groups.values()]
            with only(model, layout.places):
                output = model(**layout.inputs, **join(seen), shift_labels=layout.targets[None], fused_lm_head=True)
        shape = (len(rows), ids.shape[1])
        logps = output.log_probs.new_zeros(shape).index_put(layout.answers, output.log_probs[0])
        entropy = logps.new_zeros(shape) if output.entropy is None else logps.new_zeros(shape).index_put(layout.answers, output.entropy[0])
        return logps, entropy


class EpochSampler(RepeatSampler):
    """TRL's, in an order that the number of the epoch settles. TRL's own goes on from where its generator stands, which a resumed run does
    not know: it would repeat the first epoch's order. Rows that fill no generation batch are left out of an epoch, others in each.
    """

    seed: int

    def set_epoch(self, epoch: int) -> None:
        if self.shuffle:
            self.generator.manual_seed(self.seed + epoch)


def counting(rewards: torch.Tensor, weights: torch.Tensor, generations: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which completions teach something: (completions,), (groups,) of groups whose rewards differ, (completions,) of those with a reward.

    Args:
        rewards: (completions, functions), NaN where a function gave none; groups of `generations` stand together.
    """
    scored = ~rewards.isnan().all(1)
    total = (rewards * weights.to(rewards.device)).nansum(1).view(-1, generations)
    known = scored.view(-1, generations)
    spread = total.masked_fill(~known, -torch.inf).amax(1) - total.masked_fill(~known, torch.inf).amin(1)
    varied = spread > SAME_REWARD  # of a group without any reward: -inf
    return (known & varied[:, None]).flatten(), varied, scored


def never_sampled(model: Any, tokenizer: Any, args: Any) -> list[int]:
    """All special tokens, of the tokenizer and of the model's config (vision, alarm), but those that end an answer; and what args names."""
    config = plain(model).config
    special = set(tokenizer.all_special_ids) | {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = (
        getattr(config, name, None) for name in ("image_token_id", "video_token_id", "visual_alarm_token_id", "textual_alarm_token_id")
    )
    ends = plain(model).generation_config.eos_token_id
    ends = {tokenizer.eos_token_id} | set(ends if isinstance(ends, list) else [ends])
    given = (args.generation_kwargs or {}).get("suppress_tokens") or ()
    return sorted((special | {i for i in named if isinstance(i, int)} | set(given)) - ends)


def check(args: Any, rows: int, *, wants_reference: bool, has_reference: bool) -> None:
    """Raises ValueError where the settings cannot be carried out, DataError where there are too few rows for one step."""
    if args.use_vllm:
        raise ValueError(NO_VLLM)
    if args.loss_type not in LOSSES:
        raise ValueError(f"loss_type must be one of {', '.join(LOSSES)}, got {args.loss_type!r}: of these it is known what divides them")
    if args.multi_objective_aggregation != "sum_then_normalize":
        raise ValueError("multi_objective_aggregation must be sum_then_normalize: else no group is without a signal")
    if args.sync_ref_model:
        raise ValueError("sync_ref_model is refused: the reference is the start checkpoint")
    if args.beta and wants_reference != has_reference:
        raise ValueError("a reference is needed with beta > 0, but not with LoRA, where it is the model with the adapter off")
    steps, window = args.steps_per_generation, args.gradient_accumulation_steps
    if steps % window:  # a step over several generation batches would average their means, and not their answers
        raise ValueError(
            f"gradient_accumulation_steps {window} does not divide steps_per_generation {steps}: leave steps_per_generation out, or set it "
            f"to {window} or a multiple"
        )
    every = steps * args.num_iterations
    between = (args.save_steps * window) % every if args.save_steps >= 1 else every > window  # below 1 it is a share of all steps
    if args.save_strategy == "steps" and between:
        raise ValueError(
            f"save_steps {args.save_steps:g}: a checkpoint would fall between updates from one generation batch, and could not be resumed "
            f"from exactly; save every {every // window} optimiser step(s), or a multiple"
        )
    needed = args.generation_batch_size // args.num_generations
    if rows < needed:
        raise DataError(
            f"videosafety: {rows} row(s), but one generation batch takes {needed} (per_device_train_batch_size "
            f"{args.per_device_train_batch_size} · {args.world_size} process(es) · steps_per_generation {steps} / num_generations "
            f"{args.num_generations}): no step could be made; add rows or make the batch smaller"
        )
