"""Checks that an encoder is what it seems: its files, its config, its weights, its tokenizer.

All of these load without a word and train: weights that fill a part of the layers and leave the
rest random, attention that sees the words before and none behind, a tokenizer that knows no word.
Each is refused in one line that names the file and the remedy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_mtl_demo.errors import EncoderError

CONFIG = "config.json"
# In the order in which transformers looks for them.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
TOKENIZERS = ("tokenizer.json", "vocab.txt")
LFS_POINTER = b"version https://git-lfs"

# Keys of a config that change what the weights mean, the values under which this program is right
# about them (the first is the default), and what is wrong with others.
REQUIRED: Mapping[str, tuple[tuple[object, ...], str]] = {
    "is_decoder": (
        (False, None),
        "a token would see only those before it. If its weights are an encoder's, set it to false",
    ),
    "add_cross_attention": (
        (False, None),
        "it waits for another encoder's output. Name an encoder without it",
    ),
    "position_embedding_type": (
        ("absolute", None),
        "transformers 5 reads absolute positions alone and would drop the others. Name another "
        "encoder",
    ),
    "quantization_config": (
        (None,),
        "quantised weights cannot be trained. Name the encoder that they were made from",
    ),
}


def config_of(directory: Path) -> dict[str, Any]:
    """The values in an encoder's config.json."""
    refuse_pointer(directory, CONFIG)
    try:
        values = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except OSError:
        raise EncoderError(
            f"encoder {str(directory)!r}: the directory has no readable config.json. It needs "
            f"{CONFIG}, the weights ({WEIGHTS[0]}) and the tokenizer ({TOKENIZERS[0]})."
        ) from None
    except (ValueError, RecursionError) as error:
        raise EncoderError(
            f"encoder {str(directory)!r}: its config.json is not valid JSON ({error}). Save or "
            "download it again."
        ) from None
    return values if isinstance(values, dict) else {}


def refuse_config(origin: str, values: Mapping[str, Any]) -> None:
    """Refuse what is no BERT, or a BERT that is not read as an encoder.

    >>> refuse_config("mine", {"model_type": "bert", "is_decoder": False})
    >>> refuse_config("mine", {"model_type": "gpt2"})
    Traceback (most recent call last):
    bert_mtl_demo.errors.EncoderError: encoder 'mine': has model_type 'gpt2', but only 'bert' is \
supported. Name a BERT.
    """
    if values.get("model_type") != "bert":
        raise EncoderError(
            f"encoder {origin!r}: has model_type {values.get('model_type')!r}, but only 'bert' is "
            "supported. Name a BERT."
        )
    for key, (allowed, problem) in REQUIRED.items():
        if values.get(key) not in allowed:
            raise EncoderError(
                f"encoder {origin!r}: its {CONFIG} has {key} = {json.dumps(values[key])}: "
                f"{problem}."
            )
    for key in ("max_position_embeddings", "vocab_size"):
        count = values.get(key, 1)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise EncoderError(
                f"encoder {origin!r}: its {CONFIG} has {key} = {json.dumps(count)}, but a whole "
                "number of at least 1 is needed. Copy the file again from where the weights are "
                "from."
            )


def refuse_files(directory: Path) -> None:
    """Refuse a directory without weights or tokenizer, or with pointers in their place."""
    weights = next((name for name in WEIGHTS if (directory / name).is_file()), None)
    if weights is None:
        raise EncoderError(
            f"encoder {str(directory)!r}: holds no weights (looked for {', '.join(WEIGHTS)}). "
            "Put them there, or name another directory."
        )
    tokenizers = [name for name in TOKENIZERS if (directory / name).is_file()]
    if not tokenizers:
        raise EncoderError(
            f"encoder {str(directory)!r}: has no tokenizer ({' or '.join(TOKENIZERS)}), so every "
            "word would be unknown. Copy it from the encoder that these weights were trained from."
        )
    shards = [path.name for path in directory.glob("*.safetensors")] if "index" in weights else []
    for name in (weights, *sorted(shards), *tokenizers):
        refuse_pointer(directory, name)


def refuse_pointer(directory: Path, name: str) -> None:
    """Refuse a file that git-lfs has not replaced by its content."""
    try:
        with (directory / name).open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError:
        return  # whoever reads it says what is wrong
    if start == LFS_POINTER:
        raise EncoderError(
            f"encoder {str(directory)!r}: {name} is a Git LFS pointer, not the file itself. Run "
            f"'git lfs pull' in {str(directory)!r}."
        )


def refuse_misfit(origin: str, encoder: Any, info: Mapping[str, Any], *, pooler: bool) -> None:
    """Refuse weights that leave a part of the encoder random, or of which a part is left over.

    Args:
        origin: the directory, or the name on the hub.
        encoder: the BertModel that was loaded.
        info: `output_loading_info` of transformers.
        pooler: whether the pooler is needed.
    """
    for name, saved, wanted in sorted(info["mismatched_keys"], key=str):
        raise EncoderError(
            f"encoder {origin!r}: its weights have {name} of shape {list(saved)}, where {CONFIG} "
            f"asks for {list(wanted)}. One of the two files is another encoder's."
        )
    left = sorted(info["unexpected_keys"])
    missing = sorted(
        name for name in info["missing_keys"] if pooler or not name.startswith("pooler.")
    )
    if missing:
        total = len(encoder.state_dict())
        raise EncoderError(
            f"encoder {origin!r}: its weights lack {len(missing)} of {total} tensors, such as "
            f"{missing[0]}, which would be random. {_remedy(missing, left)}"
        )
    layers = {int(name.split("encoder.layer.")[1].split(".")[0]) for name in left if _layer(name)}
    count = encoder.config.num_hidden_layers
    if layers and max(layers) >= count:
        raise EncoderError(
            f"encoder {origin!r}: its weights have layers 0 to {max(layers)}, but its {CONFIG} has "
            f"num_hidden_layers = {count}. Correct it to {max(layers) + 1}; to train some of the "
            "layers, use --encoder-layers."
        )
    for name, weight in encoder.named_parameters():
        if not weight.isfinite().all():
            raise EncoderError(
                f"encoder {origin!r}: its weights are not finite (NaN or infinity in {name}), so "
                "no step could be taken. Save or download them again."
            )


def _layer(name: str) -> bool:
    return name.partition("encoder.layer.")[2].split(".")[0].isdecimal()


def _remedy(missing: Sequence[str], left: Sequence[str]) -> str:
    """What to do about tensors that are missing while others are left over."""
    if all(name.startswith("pooler.") for name in missing):
        return "Use --pooling cls or mean, or an encoder that was saved with its pooler."
    for name in left:
        if name.endswith(missing[0]):
            prefix = name[: -len(missing[0])]
            return f"The file has {name}: save it again with its tensors named without {prefix!r}."
    if all(name.startswith("encoder.layer.") for name in missing):
        first = min(int(name.split(".")[2]) for name in missing)
        return (
            f"If they are an encoder of {first} layers, correct num_hidden_layers in {CONFIG}; "
            "otherwise save or download them again."
        )
    return "Save the model again with save_pretrained, or download it again."


def refuse_tokenizer(origin: str, tokenizer: Any, rows: int | None) -> None:
    """Refuse a tokenizer that knows no words, frames no sentences, or has more tokens than `rows`.

    Args:
        origin: the directory, or the name on the hub.
        tokenizer: as transformers loads it.
        rows: rows of the word embedding; None: not known.
    """
    specials = {name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "unk")}
    specials |= {name: getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep")}
    for name, number in specials.items():
        if number is None:
            raise EncoderError(
                f"encoder {origin!r}: its tokenizer has no [{name.upper()}]. {_COPY}"
            )
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) <= len(set(tokenizer.all_special_ids)):
        raise EncoderError(
            f"encoder {origin!r}: its tokenizer knows {len(vocabulary)} tokens and no word, so all "
            f"text would be [UNK]. {_COPY}"
        )
    if rows is not None and (largest := max(vocabulary.values())) >= rows:
        raise EncoderError(
            f"encoder {origin!r}: its tokenizer has tokens up to number {largest}, but the word "
            f"embedding has {rows} rows (vocab_size in {CONFIG}). Tokens were added to the one "
            "and not to the other: save the model after resize_token_embeddings, or copy the "
            "tokenizer that it was trained with."
        )
    if tokenizer("")["input_ids"] != [specials["cls"], specials["sep"]]:
        raise EncoderError(
            f"encoder {origin!r}: its tokenizer does not put a sentence between [CLS] and [SEP]. "
            f"{_COPY}"
        )


_COPY = "Copy tokenizer.json and tokenizer_config.json from the encoder that it was trained from."
