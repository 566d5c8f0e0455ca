"""What no JSON schema can say of a YAML body: where text is wanted, a plain 42 or true is that text."""

from typing import Any

import schemathesis

TEXT = frozenset(
    "name source revision text_column checkpoint licence experiment_name data_dir train_file val_file test_file "
    "dataset exp_dir attention_dir load_checkpoint checkpoint_path cmap preset".split()
)


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Leave out YAML bodies whose only fault may be a number or a boolean in the place of text."""
    is_yaml = case.media_type is not None and "yaml" in case.media_type
    return not (is_yaml and _holds_plain_text(case.body))


def _holds_plain_text(body: Any, key: str = "") -> bool:
    if isinstance(body, dict):
        return any(_holds_plain_text(value, key if key == "metadata" else name) for name, value in body.items())
    if isinstance(body, list):
        return any(_holds_plain_text(value, key) for value in body)
    return isinstance(body, bool | int | float) and (key in TEXT or key in {"metadata", "depends_on"})
