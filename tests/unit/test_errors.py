"""The error tree: each error stable, complete, and the same after a trip through JSON or another process."""

from __future__ import annotations

import pickle

import pytest

from tlm_core import errors
from tlm_core.errors import Fault, InvalidDataset, TLMError, error_classes, error_from_dict


def test_codes_are_unique_and_every_class_is_drawn_in_the_docstring() -> None:
    classes = error_classes()
    assert errors.__doc__ is not None
    for code, cls in classes.items():
        assert cls.code == code
        if cls.__module__ == errors.__name__:
            assert cls.__name__ in errors.__doc__
    assert len({cls.code for cls in classes.values()}) == len(classes)


@pytest.mark.parametrize("cls", [c for c in error_classes().values() if c is not InvalidDataset])
def test_an_error_survives_json_and_pickle(cls: type[TLMError]) -> None:
    error = cls("change this", row=3)
    for back in (error_from_dict(error.as_dict()), pickle.loads(pickle.dumps(error))):
        assert type(back) is cls
        assert (back.message, back.facts) == (error.message, error.facts)


def test_faults_survive_too() -> None:
    error = InvalidDataset("bad", [Fault("null_label", "no label", "train", 7, "label")])
    for back in (error_from_dict(error.as_dict()), pickle.loads(pickle.dumps(error))):
        assert isinstance(back, InvalidDataset)
        assert back.faults == error.faults
