"""The error tree: unique codes, and errors that survive JSON and pickle."""

from __future__ import annotations

import pickle

import pytest

from tlm_core.errors import Fault, InvalidDataset, Outage, TLMError, error_classes, error_from_dict


def subclasses(cls: type[TLMError]) -> set[type[TLMError]]:
    return {cls}.union(*map(subclasses, cls.__subclasses__()))


def test_every_error_class_has_its_own_code_and_docstring() -> None:
    assert set(error_classes().values()) == subclasses(TLMError) - {Outage}, "two classes with one code"
    for code, cls in error_classes().items():
        assert cls.code == code and cls.__doc__


@pytest.mark.parametrize("cls", [c for c in error_classes().values() if c is not InvalidDataset])
def test_error_survives_json_and_pickle(cls: type[TLMError]) -> None:
    error = cls("Change this.", row=3)
    for back in (error_from_dict(error.as_dict()), pickle.loads(pickle.dumps(error))):
        assert type(back) is cls
        assert (back.message, back.facts) == (error.message, error.facts)


def test_data_errors_survive_json_and_pickle() -> None:
    error = InvalidDataset("bad", [Fault("null_label", "no label", "train", 7, "label")])
    for back in (error_from_dict(error.as_dict()), pickle.loads(pickle.dumps(error))):
        assert isinstance(back, InvalidDataset)
        assert back.faults == error.faults
