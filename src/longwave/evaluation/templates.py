"""The texts of passkey prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Template:
    """The texts of a passkey prompt: intro, filler, needle, filler, question; then the expected answer."""

    needle: str
    filler: str
    question: str
    answer: str
    intro: str = ""

    def naming(self) -> Template:
        """The same passkeys as those of somebody, for prompts with several."""
        whose = "pass key of {name}"
        needle = self.needle.replace("pass key", whose)
        return replace(self, needle=needle, question=self.question.replace("pass key", whose))


SHORT = Template(
    needle="The pass key is {key}. Remember it. {key} is the pass key.\n",
    filler="The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n",
    question="What is the pass key? The pass key is",
    answer=" {key}",
)

# Mohtashami & Jaggi, Landmark Attention (arXiv 2305.16300), for models that follow an instruction.
LANDMARK = Template(
    intro="There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n",
    needle="\nThe pass key is {key}. Remember it. {key} is the pass key.\n",
    filler="The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ",
    question="\nWhat is the pass key? The pass key is",
    answer=" {key}",
)

TEMPLATES = {"short": SHORT, "landmark": LANDMARK}
