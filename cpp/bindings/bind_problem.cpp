#include "bindings.hpp"

void bind_problem(pybind11::module_&) {}
