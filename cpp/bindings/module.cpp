// Table of contents of the extension module; each topic lives in its own bind_<noun>.cpp.
#include "bindings.hpp"

PYBIND11_MODULE(_core, m) {
    m.doc() = "Planner and codecs of orbitsplit, in C++.";
    m.attr("__version__") = ORBITSPLIT_VERSION;
    bind_errors(m);
    bind_problem(m);
    bind_planner(m);
    bind_codec(m);
    bind_encoder(m);
    bind_calibrated(m);
    bind_weights(m);
    bind_decoder(m);
}
