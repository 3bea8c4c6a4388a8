// The functions that fill the extension module, one for each public header; the classes of bind_encoder keep memory
// between calls.
#pragma once

#include <pybind11/pybind11.h>

void bind_errors(pybind11::module_& m);
void bind_problem(pybind11::module_& m);
void bind_planner(pybind11::module_& m);
void bind_codec(pybind11::module_& m);
void bind_encoder(pybind11::module_& m);
void bind_calibrated(pybind11::module_& m);
void bind_weights(pybind11::module_& m);
void bind_decoder(pybind11::module_& m);
