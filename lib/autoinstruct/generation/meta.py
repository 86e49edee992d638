"""The paper's generator: several samples of every style's meta-prompt, and the seed instruction first."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from tqdm import tqdm

from lib.autoinstruct.generation.candidates import Candidate, CandidateSet, collect
from lib.autoinstruct.generation.styles import FEW_SHOT, WORKED, ZERO_SHOT, WorkedTask, meta_prompt
from lib.autoinstruct.prompts import Demonstration


@runtime_checkable
class Generator(Protocol):
    """What answers a meta-prompt: an `Endpoint`, a `LocalGenerator`, or your own."""

    def complete(self, prompt: str, *, count: int, temperature: float, max_tokens: int, seed: int) -> list[str]:
        """`count` answers to a prompt."""
        ...


def generate(
    generator: Generator,
    instruction: str,
    demonstrations: Sequence[Demonstration] = (),
    *,
    worked: Mapping[str, Sequence[WorkedTask]] | None = None,
    samples: int = 3,
    max_tokens: int = 512,
    seed: int = 0,
    progress: bool = False,
) -> CandidateSet:
    """Candidates of a task: its own instruction, then `samples` of every style (few-shot styles with demonstrations).

    `worked` holds the tasks to imitate, by style; styles that need them are left out where there are none. With all
    seven few-shot styles and three samples these are the paper's 22 candidates, zero-shot 19.
    """
    styles = [s for s in (FEW_SHOT if demonstrations else ZERO_SHOT) if s not in WORKED or (worked or {}).get(s)]

    def made() -> Iterator[Candidate]:
        yield Candidate(instruction, "human", "human")
        for style in tqdm(styles, desc="meta-prompts", disable=not progress):
            prompt = meta_prompt(style, instruction, demonstrations, worked=(worked or {}).get(style, ()))
            options = {"count": samples, "temperature": 1.0, "max_tokens": max_tokens, "seed": seed}
            for text in generator.complete(prompt, **options):
                yield Candidate(text, "meta-prompt", style)

    return collect(made(), demonstrations=demonstrations)
