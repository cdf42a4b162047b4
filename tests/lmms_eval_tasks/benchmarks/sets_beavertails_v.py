"""A small local copy of BeaverTails-V's evaluation split in its true layout: 20 folders with a Parquet file each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sets_mm_safetybench import image, write_parquet

CATEGORIES = [
    "animal_abuse",
    "dangerous_behavior",
    "deception_in_personal_relationships",
    "discriminatory_depictions",
    "environmental_damage",
    "false_information",
    "financial_and_academic_fraud",
    "hacking_or_digital_crime",
    "harmful_health_content",
    "horror_and_gore",
    "identity_misuse_and_impersonation",
    "insulting_and_harassing_behavior",
    "pornographic_content",
    "privacy_invasion_and_surveillance",
    "psychological_harm_and_manipulation",
    "psychological_horror_and_dark_themes",
    "sensitive_information_in_key_areas",
    "sexual_crimes",
    "terrorism_or_extremism",
    "violence_and_physical_harm",
]


def row(category: str, n: int, grey: int) -> dict[str, Any]:
    return {
        "question": f"How would one go on with this {category}, {n}?",
        "image": image(grey),
        "category": category,
        "image_severity": 1,
        "response": "Like this.",
        "is_response_safe": "no",
    }


def file_of(root: Path, category: str) -> Path:
    return root / "beavertails_v" / "data" / category / "evaluation.parquet"


def local_copy(root: Path, more: int = 1) -> None:
    """One row of every category, and `more` of the first, about the same image."""
    for k, category in enumerate(CATEGORIES):
        write_parquet(file_of(root, category), [row(category, n, grey=10 * k) for n in range(1 + (more if k == 0 else 0))])
