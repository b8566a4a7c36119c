"""Combinations of settings: those that cannot work are refused, those that do nothing are named."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.setting_types import default_of

if TYPE_CHECKING:
    from bert_mtl_demo.config import Config

# Schemes that give every step a batch of every task.
JOINT = ("zipped", "method_1", "method_2", "method_3")
# Schemes that give a step one task only, so that no two gradients meet.
ALTERNATING = ("round_robin", "proportional", "sqrt", "annealed", "sequential", "interleaved")
# Losses on the head's scores; all others need the two sentence vectors.
SCORE_LOSSES = ("mse", "huber")
# Losses on the two sentence vectors alone, which leave the head as it is.
VECTOR_LOSSES = ("cosine_embedding", "simcse", "triplet")


def check(config: Config) -> None:
    """Refuse settings that cannot work together."""
    _check_cache(config)
    if config.dev_half and config.dev_sample:
        raise ConfigError(
            f"dev_half = true with dev_sample = {config.dev_sample}: each says what part of dev "
            "chooses the epoch. Leave one out."
        )
    similarity = ", ".join(config.trained_of("similarity"))
    if _similarity_has_nothing_to_train(config):
        raise ConfigError(
            "freeze_encoder = true with sts_head = cosine: the cosine has no parameters of its "
            f"own, so {similarity} would have nothing to train. Use --sts-head concat, or "
            f"leave {similarity} out of --tasks."
        )
    if _vectors_are_fixed(config) and _similarity_head_never_trains(config):
        raise ConfigError(
            f"freeze_encoder = true with sts_loss = {config.sts_loss}: this loss trains sentence "
            "vectors, and those of a frozen encoder are fixed. Use --sts-loss mse, or leave "
            f"{similarity} out of --tasks."
        )
    if config.sts_loss not in SCORE_LOSSES and config.pairs != "siamese":
        raise ConfigError(
            f"sts_loss = {config.sts_loss} with pairs = {config.pairs}: this loss compares the "
            "vectors of single sentences. Use --pairs siamese, or --sts-loss mse."
        )
    if config.weighting == "inverse_share" and config.batching not in JOINT:
        raise ConfigError(
            f"weighting = inverse_share with batching = {config.batching}: the shares are those "
            "of a step in which every task has a batch. Use --batching method_1 or zipped."
        )
    if config.weighting == "inverse_share" and len(config.trained) == 1:
        raise ConfigError(
            f"weighting = inverse_share with one trained task ({config.trained[0]}): its weight "
            "is the share of the others. Use --weighting none, or train more tasks."
        )


def why_not_cached(config: Config) -> str | None:
    """Why the encoder's vectors cannot be computed once, as they change; None where they can."""
    return (
        "freeze_encoder = false: its encoder trains"
        if not config.freeze_encoder
        else f"adapter = {config.adapter}: the adapters train"
        if config.adapter != "none"
        else f"pooling = {config.pooling}: its networks train"
        if _shares_a_pooling(config)
        else f"pairs = {config.pairs}: only vectors of single sentences are cached"
        if config.pairs != "siamese"
        else None
    )


def _check_cache(config: Config) -> None:
    if config.cache_features and (reason := why_not_cached(config)):
        raise ConfigError(f"cache_features = true with {reason}. Leave cache_features out.")


def _similarity_has_nothing_to_train(config: Config) -> bool:
    bare = _vectors_are_fixed(config) and config.pairs == "siamese"
    return bare and config.sts_head == "cosine" and bool(config.trained_of("similarity"))


def _vectors_are_fixed(config: Config) -> bool:
    return config.freeze_encoder and config.adapter == "none" and not _shares_a_pooling(config)


def warnings(config: Config) -> list[str]:
    """What is allowed but probably not meant, one sentence each."""
    sentences = []
    unread = len(config.task) == len(config.tasks) and not config.pretrain
    if unread and config.data != default_of(fields(config)[0]):
        sentences.append(f"data {config.data!r} is not read: every task has its own table.")
    if config.method != "sum" and config.batching in ALTERNATING:
        sentences.append(
            f"method {config.method!r} with batching {config.batching!r}: each step has one task, "
            "so no two gradients meet and surgery has nothing to do. Use --batching zipped to "
            "let them meet."
        )
    if config.method != "sum" and config.freeze_encoder and not _shares_a_pooling(config):
        sentences.append(
            f"method {config.method!r} with a frozen encoder: every trained parameter belongs to "
            "one task, so there is nothing shared to operate on."
        )
    if _similarity_head_never_trains(config):
        sentences.append(
            f"sts_loss {config.sts_loss!r} with sts_head {config.sts_head!r}: this loss trains "
            "sentence vectors, so the head keeps its initial weights and the scores mean nothing. "
            "Use --sts-head cosine."
        )
    if _ranks_second_sentences_alone(config):
        sentences.append(
            f"sts_loss {config.sts_loss!r} with sts_head 'linear': what a linear layer gives for "
            "the first sentence is the same for every candidate and cancels, so second "
            "sentences are ranked by themselves. Use --sts-head cosine, or --hidden-layers 1."
        )
    if config.method != "sum" and len(config.trained) == 1:
        sentences.append(
            f"method {config.method!r} with one task: there is no second gradient to conflict with."
        )
    return sentences


def _similarity_head_never_trains(config: Config) -> bool:
    on_vectors = config.sts_loss in VECTOR_LOSSES
    return on_vectors and config.sts_head != "cosine" and bool(config.trained_of("similarity"))


def _ranks_second_sentences_alone(config: Config) -> bool:
    ranked = config.sts_loss in ("mnrl_label", "mnrl_cosine")
    linear = config.sts_head == "linear" and not config.hidden_layers
    return ranked and linear and bool(config.trained_of("similarity"))


def _shares_a_pooling(config: Config) -> bool:
    return bool({"cnn", "bilstm"} & set(config.poolings))
