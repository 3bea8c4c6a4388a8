// The core's Problem and stages from what the Python package passes: already typed, shaped and contiguous.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "orbitsplit/cost.hpp"

// Rows of (node, start, stop, level, weight level), a level no_level for none.
using StageArray = pybind11::array_t<std::int32_t, pybind11::array::c_style>;

orbitsplit::Problem problem_from(const pybind11::object& problem);
// Of a PreparedProblem of the module, or of a problem that has not been validated.
orbitsplit::PreparedProblem prepared_from(const pybind11::object& problem);
std::vector<orbitsplit::Stage> stages_from(const StageArray& stages);
