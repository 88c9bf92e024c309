"""ALBEF and what is built on its fusion layers: answers to questions, entailment, text assignment."""

FORMER_NAMES = {   # of stored configs
    "objective": {"answering": "vqa", "judging": "entailment", "assigning": "text_assignment"},
    "eval": {"verdicts": "classification"},
}
