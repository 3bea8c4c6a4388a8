// Table of contents of the extension module; each topic lives in its own bind_<noun>.cpp.
#include "bindings.hpp"
#include "orbitsplit/version.hpp"

namespace py = pybind11;

// Without the interpreter's lock: docs/internals/architecture.md says what makes that safe.
PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
    m.doc() = "Planner and codecs of orbitsplit, in C++.";
    m.attr("__version__") = orbitsplit::version();
    bind_errors(m);
    bind_problem(m);
    bind_planner(m);
    bind_codec(m);
    bind_encoder(m);
    bind_calibrated(m);
    bind_weights(m);
    bind_decoder(m);
}
