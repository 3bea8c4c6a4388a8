#include "bindings.hpp"

void bind_codec(pybind11::module_&) {}
