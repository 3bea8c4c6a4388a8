#include "bindings.hpp"

void bind_planner(pybind11::module_&) {}
