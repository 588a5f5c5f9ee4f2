import math

import numpy as np
import pytest

from superself.basics.validate import (
    require_bool,
    require_choice,
    require_count,
    require_fraction,
    require_nonnegative,
    require_number,
    require_positive,
)

CHECKS = [require_positive, require_nonnegative, require_fraction, require_count]


def test_values_in_range_pass():
    for value in (1e-9, 1, 5.0, np.float32(0.1), np.int64(3)):
        require_positive("temperature", value)
    for value in (0, 0.0, 7.5):
        require_nonnegative("weight", value)
    for value in (0, 0.5, 1, np.float64(0.99)):
        require_fraction("momentum", value)
    for value in (1, 65536, np.int32(4)):
        require_count("queue_size", value)
    require_count("workers", 0, minimum=0)
    require_choice("noise", None, (None, "gaussian"))


@pytest.mark.parametrize("value", [0, -5, -0.1, math.inf, math.nan])
def test_what_is_not_positive_is_refused_with_its_meaning(value):
    with pytest.raises(
        ValueError, match=rf"^temperature must be a number above 0, got {value} \(it divides similarities\)\.$"
    ):
        require_positive("temperature", value, "divides similarities")


@pytest.mark.parametrize("value", [-1, -1e-9, math.inf, math.nan])
def test_negative_weights_are_refused(value):
    with pytest.raises(
        ValueError, match=rf"^proximal must be a number of at least 0, got {value} \(it weights a distance\)\.$"
    ):
        require_nonnegative("proximal", value, "weights a distance")


def test_the_ends_of_a_fraction_are_open_where_said():
    kept = "is the fraction of the old value that is kept"
    with pytest.raises(ValueError, match=rf"^momentum must be a number in \[0, 1\), got 1 \(it {kept}\)\.$"):
        require_fraction("momentum", 1, kept, upper_open=True)
    with pytest.raises(ValueError, match=r"^scale must be a number in \(0, 1\], got 0\.$"):
        require_fraction("scale", 0, lower_open=True)
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=rf"^momentum must be a number in \[0, 1\], got {value}\.$"):
            require_fraction("momentum", value)


def test_counts_are_integers_of_at_least_the_minimum():
    with pytest.raises(
        ValueError, match=r"^queue_size must be an integer of at least 1, got 0 \(it is the number of keys\)\.$"
    ):
        require_count("queue_size", 0, "is the number of keys")
    with pytest.raises(TypeError, match=r"^splits must be an integer of at least 2, got 2.0 of type float\.$"):
        require_count("splits", 2.0, minimum=2)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("value", [True, "1", None, [1]])
def test_booleans_and_other_types_are_refused(check, value):
    with pytest.raises(TypeError, match=rf"^argument must be .*, got .* of type {type(value).__name__}\.$"):
        check("argument", value)


def test_unknown_choices_are_answered_with_all_of_them():
    with pytest.raises(ValueError, match="noise='blur' is unknown; pass None, 'gaussian' or 'mask'"):
        require_choice("noise", "blur", [None, "gaussian", "mask"])
    with pytest.raises(ValueError, match="noise=True is unknown; pass 1"):
        require_choice("noise", True, [1])


@pytest.mark.parametrize("value", [1, 0, "True", None])
def test_a_switch_takes_true_or_false_only(value):
    require_bool("whole", True)
    with pytest.raises(TypeError, match=f"whole must be True or False, got {value!r} "):
        require_bool("whole", value, "gives the backbone the whole puzzle")


def test_a_number_may_be_negative_but_must_be_finite():
    require_number("angle", -90)
    with pytest.raises(ValueError, match="angle must be a finite number, got nan"):
        require_number("angle", float("nan"), "is in degrees")
    with pytest.raises(TypeError, match="angle must be a finite number, got 'a' of type str"):
        require_number("angle", "a", "is in degrees")
