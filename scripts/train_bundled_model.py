"""Train the small tool-calling model that ships in rollout/bundled_model, from nothing.

    python -m scripts.train_bundled_model                    # train, install, evaluate
    python -m scripts.train_bundled_model --evaluate DIR     # play held-out problems only

It needs torch, transformers and tokenizers, two CPU cores and well under half an hour. Every
random choice comes from a seed: two runs on one machine with as many threads give the same file.
"""

# torch and transformers leave most of what is used here without types.
# pyright: basic

import argparse
import ast
import json
import math
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from resources.arithmetic import (
    INSTRUCTIONS,
    TOOLS,
    Problem,
    evaluate,
    parse_answer,
    problem,
    prompt,
    ready,
    worked_out,
    written,
)

Message = dict[str, Any]
Generate = Callable[[list[list[int]]], list[list[int]]]
"""Prompts as token ids in; the ids sampled for each, the end token included, out."""

BUNDLED: Final = Path(__file__).resolve().parent.parent / "rollout" / "bundled_model"
TEMPLATE: Final = "chat_template.jinja"
CONTROL: Final = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
# These mark up text a parser must see, so decoding with skip_special_tokens keeps them.
MARKUP: Final = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
POSITIONS: Final = 8192
VOCABULARY: Final = 432  # at most: the conversations run out of pairs to merge before that
MAX_TURNS: Final = 8
MAX_NEW_TOKENS: Final = 128
PARALLEL: Final = 0.5  # how often two independent operations are called in one response
MISTAKES: Final = 0.06  # how often a turn is preceded by a wrong call and the error it earns
POOL: Final = 16  # batches sorted by length together, so that little of a batch is padding
_BLOCK: Final = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


# ---------------------------------------------------------------------------------------------
# What the teacher says


@dataclass(frozen=True, slots=True)
class Lesson:
    """A conversation, and which of its assistant turns (counted from 0) are not to be learnt."""

    messages: list[Message]
    wrong_turns: frozenset[int]


def lesson(task: Problem, rng: random.Random) -> Lesson:
    """Play a problem right, now and then with a wrong call that is then put right."""
    messages = opening(task)
    wrong: set[int] = set()
    turn = 0
    tree: ast.expr = ast.parse(task.expression, mode="eval").body
    while isinstance(tree, ast.BinOp):
        left = written(tree)
        if rng.random() < MISTAKES:
            messages += _exchange(left, [_wrong_call(tree, rng)])
            wrong.add(turn)
            turn += 1
        able = list(ready(tree))
        now = able[:2] if rng.random() < PARALLEL else able[:1]
        messages += _exchange(left, [written(node) for node in now])
        turn += 1
        tree = worked_out(tree, now)
    messages.append(
        {
            "role": "assistant",
            "reasoning_content": f"Left: {written(tree)}.",
            "content": f"The answer is {task.answer}.",
        }
    )
    return Lesson(messages, frozenset(wrong))


def opening(task: Problem) -> list[Message]:
    """Return the messages an episode starts from."""
    return [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": prompt(task)},
    ]


def answer_call(expression: str) -> str:
    """Return the text of the tool message that answers a call."""
    try:
        return str(evaluate(expression))
    except ValueError as error:
        return f"error: {error}"


def _exchange(left: str, expressions: Sequence[str]) -> list[Message]:
    calls = [{"function": {"name": "calculate", "arguments": {"expression": expression}}} for expression in expressions]
    results = [{"role": "tool", "content": answer_call(expression)} for expression in expressions]
    return [
        {
            "role": "assistant",
            "reasoning_content": f"Left: {left}.",
            "content": "",
            "tool_calls": calls,
        },
        *results,
    ]


def _wrong_call(tree: ast.BinOp, rng: random.Random) -> str:
    whole = written(tree)
    first = written(next(ready(tree)))
    if whole != first and rng.random() < 0.7:
        return whole
    return re.sub(r"(?<=[0-9])[+*-].*", "", first)  # one operand, no operation


# ---------------------------------------------------------------------------------------------
# Tokens


def build_tokenizer(folder: Path, seed: int) -> None:
    """Train the byte-level vocabulary on the conversations and write the tokenizer's files."""
    tokenizer = Tokenizer(models.BPE())
    # Digits and operators stay single: copying a number is then copying tokens one for one.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[0-9+*()\-]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(CONTROL) - len(MARKUP),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKUP])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": POSITIONS,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    if folder.resolve() != BUNDLED:
        shutil.copyfile(BUNDLED / TEMPLATE, folder / TEMPLATE)


def _corpus(seed: int) -> Iterator[str]:
    rng = random.Random(f"{seed}/corpus")
    marks = re.compile("|".join(re.escape(mark) for mark in (*CONTROL, *MARKUP)))
    for index in range(500):
        for message in lesson(problem(seed, index, "train"), rng).messages:
            for key in ("content", "reasoning_content"):
                yield from marks.split(message.get(key, ""))
        yield '\n{"name": "calculate", "arguments": {"expression": "1+2"}}\n'
        yield "system\nTools:\ncalculate(expression: string): the result of one operation"
        yield from ("user\n", "assistant\n")


def encode(tokenizer: Any, messages: Sequence[Message], generate: bool = False) -> list[int]:
    """Render a whole conversation, tools and all, and return its ids."""
    text = tokenizer.apply_chat_template(
        list(messages), tools=list(TOOLS), add_generation_prompt=generate, tokenize=False
    )
    return tokenizer(text, add_special_tokens=False).input_ids


def encode_results(tokenizer: Any, results: Sequence[str]) -> list[int]:
    """Return the ids that follow a sampled turn: its line end, the results, the next prompt."""
    messages = [{"role": "tool", "content": result} for result in results]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer("\n" + text, add_special_tokens=False).input_ids


def encode_lesson(tokenizer: Any, taught: Lesson) -> tuple[list[int], list[int]]:
    """Return a lesson's ids and its labels: -100 wherever the right teacher turn did not speak."""
    ids = encode(tokenizer, taught.messages)
    header = tokenizer("<|im_start|>assistant\n", add_special_tokens=False).input_ids
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    labels = [-100] * len(ids)
    turn = 0
    for start in range(len(ids)):
        if ids[start : start + len(header)] != header:
            continue
        first = start + len(header)
        last = ids.index(end, first) + 1
        if turn not in taught.wrong_turns:
            labels[first:last] = ids[first:last]
        turn += 1
    return ids, labels


# ---------------------------------------------------------------------------------------------
# Training


def build_model(tokenizer: Any, seed: int) -> Qwen3ForCausalLM:
    """Return the untrained model.

    Qwen3 rather than Llama: what takes long here is learning to copy numbers, and with its
    normalised queries and keys that comes in half the steps.
    """
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    )
    return Qwen3ForCausalLM(config)


def batches(tokenizer: Any, seed: int, steps: int, size: int, easy: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield `steps` batches of ids and labels; the first `easy` hold one or two operations."""
    rng = random.Random(f"{seed}/lessons")
    pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    index = 0
    for first in range(0, steps, POOL):
        pool: list[tuple[list[int], list[int]]] = []
        while len(pool) < POOL * size:
            task = problem(seed, index, "train")
            index += 1
            if first >= easy or len(task.steps) <= 2:
                pool.append(encode_lesson(tokenizer, lesson(task, rng)))
        pool.sort(key=lambda pair: len(pair[0]))
        order = list(range(POOL))
        rng.shuffle(order)
        for which in order[: steps - first]:
            chosen = pool[which * size : (which + 1) * size]
            longest = max(len(ids) for ids, _ in chosen)
            yield (
                torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in chosen]),
                torch.tensor([lab + [-100] * (longest - len(lab)) for _, lab in chosen]),
            )


def train(model: Qwen3ForCausalLM, tokenizer: Any, options: argparse.Namespace) -> Iterator[tuple[int, float]]:
    """Train in place, yielding (step, loss) after every step; stops early out of minutes."""
    optimizers = build_optimizers(model, options.rate)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, options.warmup, options.steps))
        for optimizer in optimizers
    ]
    began = time.monotonic()
    model.train()
    lessons = batches(tokenizer, options.seed, options.steps, options.batch, options.easy_steps)
    for step, (ids, labels) in enumerate(lessons, 1):
        # Padding is on the right of a causal model and has no label, so it needs no mask.
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad(set_to_none=True)
        yield step, loss.item()
        if time.monotonic() - began > options.minutes * 60:
            return


def build_optimizers(model: Qwen3ForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for the embedding and the norms.

    On a Llama of this size AdamW alone took over four times the steps to the same loss.
    """
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = parameter.ndim == 2 and "embed" not in name
        (matrices if inside else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _rate(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def save(model: Qwen3ForCausalLM, folder: Path) -> None:
    """Write the weights in bfloat16, and how to sample from them, beside the tokenizer."""
    state = {k: v.detach().clone().bfloat16() for k, v in model.state_dict().items()}
    copy = Qwen3ForCausalLM(model.config).bfloat16()
    copy.load_state_dict(state)
    copy.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    copy.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # it is written for its owner only


# ---------------------------------------------------------------------------------------------
# Playing


@dataclass(slots=True)
class _Game:
    task: Problem
    ids: list[int]
    turns: int = 0
    blocks: int = 0
    parsed: int = 0
    errors: int = 0
    reward: float = 0.0
    over: bool = False


@dataclass(frozen=True, slots=True)
class Figures:
    """What playing held-out problems came to."""

    problems: int
    reward: float
    parse_rate: float
    turns: float
    calls: float
    error_rate: float
    reward_by_operations: dict[int, float]


def play(tokenizer: Any, generate: Generate, problems: Sequence[Problem]) -> Figures:
    """Play problems to the end, all at once, appending ids and never encoding a turn again."""
    games = [_Game(task, encode(tokenizer, opening(task), generate=True)) for task in problems]
    while running := [game for game in games if not game.over]:
        for game, sampled in zip(running, generate([g.ids for g in running]), strict=True):
            _take_turn(tokenizer, game, sampled)
    blocks = sum(game.blocks for game in games)
    groups: dict[int, list[float]] = {}
    for game in games:
        groups.setdefault(len(game.task.steps), []).append(game.reward)
    return Figures(
        problems=len(games),
        reward=sum(game.reward for game in games) / len(games),
        parse_rate=sum(game.parsed for game in games) / max(1, blocks),
        turns=sum(game.turns for game in games) / len(games),
        calls=blocks / len(games),
        error_rate=sum(game.errors for game in games) / max(1, blocks),
        reward_by_operations={n: sum(r) / len(r) for n, r in sorted(groups.items())},
    )


def _take_turn(tokenizer: Any, game: _Game, sampled: list[int]) -> None:
    game.turns += 1
    game.ids = game.ids + sampled
    said = tokenizer.decode(sampled)
    blocks = said.count("<tool_call>")
    expressions = [_expression(block) for block in _BLOCK.findall(said)]
    game.blocks += blocks
    game.parsed += sum(expression is not None for expression in expressions)
    ended = said.endswith("<|im_end|>")
    if ended and blocks == 0:
        game.reward = float(parse_answer(said.removesuffix("<|im_end|>")) == game.task.answer)
    game.over = not ended or blocks == 0 or game.turns >= MAX_TURNS
    if not game.over:
        results = [_result(expression) for expression in expressions]
        results += ["error: not a call"] * (blocks - len(results))
        game.errors += sum(result.startswith("error") for result in results)
        game.ids = game.ids + encode_results(tokenizer, results)


def _result(expression: str | None) -> str:
    return "error: not a call" if expression is None else answer_call(expression)


def _expression(block: str) -> str | None:
    """Return the expression of a well-formed call, None for anything else."""
    try:
        call = json.loads(block)
    except ValueError:
        return None
    match call:
        case {"name": "calculate", "arguments": {"expression": str(expression)} as arguments}:
            return expression if len(arguments) == 1 else None
        case _:
            return None


def sampler(model: Qwen3ForCausalLM, pad: int, seed: int, at_once: int = 128) -> Generate:
    """Return a Generate that samples at temperature 1 from the whole vocabulary."""
    torch.manual_seed(seed)
    model.eval()

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        sampled: list[list[int]] = []
        for first in range(0, len(prompts), at_once):
            sampled += _generate(model, prompts[first : first + at_once], pad)
        return sampled

    return generate


@torch.no_grad()
def _generate(model: Qwen3ForCausalLM, prompts: list[list[int]], pad: int) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    untyped: Any = model
    end: int = untyped.config.eos_token_id
    output = untyped.generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=end,
        pad_token_id=pad,
    )
    rows: list[list[int]] = output[:, longest:].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def evaluate_folder(folder: Path, problems: int, seed: int) -> Figures:
    """Load a saved model as anyone would and play held-out problems with it."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tasks = [problem(seed, index, "heldout") for index in range(problems)]
    return play(tokenizer, sampler(model, tokenizer.pad_token_id, seed), tasks)


def report(figures: Figures) -> str:
    """Return the figures as one line."""
    groups = " ".join(f"{n}:{r:.2f}" for n, r in figures.reward_by_operations.items())
    return (
        f"{figures.problems} held-out problems: reward {figures.reward:.3f}  "
        f"calls that parse {figures.parse_rate:.2%}  turns {figures.turns:.2f}  "
        f"calls {figures.calls:.2f}  calls answered with an error {figures.error_rate:.2%}  "
        f"reward by operations {groups}"
    )


# ---------------------------------------------------------------------------------------------
# The command


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=BUNDLED, help="where the model goes")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--minutes", type=float, default=30.0, help="stop early after this long")
    parser.add_argument("--batch", type=int, default=32, help="conversations a step")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=50, help="steps")
    parser.add_argument("--easy-steps", type=int, default=150, help="steps on one or two operations, first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--problems", type=int, default=256, help="held-out problems to play")
    parser.add_argument("--keep", type=Path, help="save a checkpoint here every --keep-every steps")
    parser.add_argument("--keep-every", type=int, default=100)
    parser.add_argument("--evaluate", type=Path, metavar="DIR", help="only play, with this model")
    return parser.parse_args()


def main() -> None:
    """Train, save and evaluate; or only evaluate."""
    options = _options()
    torch.set_num_threads(options.threads)
    if options.evaluate:
        print(report(evaluate_folder(options.evaluate, options.problems, options.seed)))
        return
    build_tokenizer(options.out, options.seed)
    tokenizer: Any = AutoTokenizer.from_pretrained(options.out)
    model = build_model(tokenizer, options.seed)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, vocabulary {len(tokenizer)}", flush=True)
    began = time.monotonic()
    recent: list[float] = []
    for step, loss in train(model, tokenizer, options):
        recent = [*recent[-24:], loss]
        if step % 25 == 0:
            mean = sum(recent) / len(recent)
            print(f"step {step}  loss {mean:.4f}  {time.monotonic() - began:.0f} s", flush=True)
        if options.keep and step % options.keep_every == 0:
            folder = options.keep / f"step-{step}"
            build_tokenizer(folder, options.seed)
            save(model, folder)
    save(model, options.out)
    print(report(evaluate_folder(options.out, options.problems, options.seed)))


if __name__ == "__main__":
    main()
