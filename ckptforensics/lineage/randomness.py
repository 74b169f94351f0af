"""Every stream of random numbers that comparing two models draws, each with a key of its own."""

from __future__ import annotations

from enum import IntEnum, unique

import numpy as np


@unique
class Stream(IntEnum):
    """What random numbers are for.

    Two streams never share a number, so that what one criterion draws says nothing of what another
    does. The values are part of every result: a changed one changes samples.
    """

    COORDINATE_ORDERS = 1
    SUBSPACE_STARTS = 2
    GATE_ROWS = 3
    EMBEDDING_COLUMNS = 4
    COORDINATE_FEATURES = 5
    SINGULAR_VALUES = 6
    MAP_CHECK = 7
    MAP_CONFIRMATION = 8
    UNCHANGED_COLUMNS = 31
    PERMUTED_COLUMNS = 32
    MOMENT_COORDINATES = 33
    MATCHED_UNITS = 34
    UNIT_TIES = 35
    HEAD_TIES = 36
    STORED_ROWS = 37
    EXPERT_UNITS = 41
    NARROW_UNITS = 42
    COPIED_UNITS = 43
    ADDED_UNITS = 44
    MERGE_BOOTSTRAP = 51
    SHARED_TOKENS = 2_001
    SAMPLED_NEURONS = 2_101
    NEURON_TIES = 2_102
    PSEUDO_TOKENS = 2_103
    LAYER_TIES = 2_201
    PARTNER_STATES = 2_202
    GATE_FUNCTIONS = 2_301
    TOKEN_SPACE = 2_302
    EQUAL_PARTS = 2_303
    LAYOUT = 2_304
    OWN_NEURONS = 2_305
    RENUMBERED = 2_306


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """Random numbers of one stream: the same seed and key give the same ones.

    Parameters
    ----------
    key : what tells several draws of one stream apart, such as the number of a layer
    """
    return np.random.default_rng([seed, stream, *key])
