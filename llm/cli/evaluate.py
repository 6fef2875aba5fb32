"""``occ evaluate`` and ``occ generate``: how well a model predicts, and what it says."""

import dataclasses
from typing import Annotated

import jax
import tyro

from ..checkpoints import Checkpoint, load_checkpoint
from ..errors import OccError
from ..evaluation import Quality, Reference, cut_windows, evaluate, read_text, usual_window
from ..generation import Sampling, generate, spoken
from ..model import LanguageModel
from .terminal import Terminal

ModelSource = Annotated[str, tyro.conf.Positional]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Perplexity of a model on a text and, given a reference, its KL divergence from that."""

    model: ModelSource
    """A directory (dense or compressed), a hub id, a .gguf file, or a name of `occ models`."""
    text: str
    """A text file, or `wikitext2` for the raw test split from the hub."""
    reference: str | None = None
    """The uncompressed model to compare with."""
    window: int | None = None
    """Tokens per window; by default 2048, or what the model was trained on if that is less."""
    max_windows: int | None = None
    """Evaluate the first so many windows only."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> None:
        """Evaluate and show the result."""
        terminal = Terminal(json_only=self.json)
        checkpoint = load_checkpoint(self.model)
        text = read_text(self.text)
        window = self.window or usual_window(checkpoint.config)
        windows = cut_windows(text, checkpoint.tokenizer, window=window, max_windows=self.max_windows, source=self.text)
        reference = None
        if self.reference is not None:
            original = load_checkpoint(self.reference)
            require_same_tokens(checkpoint, original)
            reference = Reference(LanguageModel.from_weights(original.config, original.weights), keep=False)
        model = LanguageModel.from_weights(checkpoint.config, checkpoint.weights)
        quality = evaluate(model, windows, reference=reference, progress=lambda rows: terminal.track(rows, "windows"))
        show_quality(terminal, self.model, quality)
        terminal.result(quality)


def require_same_tokens(model: Checkpoint, reference: Checkpoint) -> None:
    """Refuse to compare distributions over different vocabularies.

    Raises:
        OccError: the two models number their tokens differently.
    """
    if (
        model.config.vocab_size != reference.config.vocab_size
        or model.tokenizer.get_vocab() != reference.tokenizer.get_vocab()
    ):
        raise OccError(
            f"{model.name} and {reference.name} have different tokens; compare a model with its own original"
        )


def show_quality(terminal: Terminal, name: str, quality: Quality) -> None:
    """One row per measured quantity."""
    fields = dataclasses.asdict(quality)
    fields.pop("kl_windows")
    rows = [(field.replace("_", " "), value) for field, value in fields.items()]
    terminal.table(name, ("quantity", "value"), rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue a prompt, to read what a (compressed) model says."""

    model: ModelSource
    """A directory (dense or compressed), a hub id, a .gguf file, or a name of `occ models`."""
    prompt: str
    """Text to continue; taken as it is, without a chat template."""
    max_tokens: int = 64
    """Stop after so many tokens."""
    temperature: float = 0.0
    """0 takes the most likely token; 1 samples from the model's own distribution."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together have this probability."""
    seed: int = 0
    """Seed of the sampling."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> None:
        """Generate, and print the text as it comes."""
        terminal = Terminal(json_only=self.json)
        checkpoint = load_checkpoint(self.model)
        tokenizer = checkpoint.tokenizer
        prompt = tokenizer.encode(self.prompt).ids
        tokens = generate(
            LanguageModel.from_weights(checkpoint.config, checkpoint.weights),
            prompt,
            max_new_tokens=self.max_tokens,
            sampling=Sampling(temperature=self.temperature, top_p=self.top_p),
            key=jax.random.key(self.seed),
        )
        terminal.text(self.prompt)
        text, made = "", []
        for token, piece in spoken(tokenizer, prompt, tokens):
            made.append(token)
            text += piece
            terminal.text(piece)
        terminal.text("\n")
        terminal.result({"prompt": self.prompt, "text": text, "tokens": made})
