#include <string>

#include "bindings.hpp"
#include "orbitsplit/error.hpp"

namespace py = pybind11;

namespace {

// The exception classes live in orbitsplit._errors, so that both backends raise the same ones.
template <class CppError>
void translate(const char* python_name) {
    static std::string name;
    name = python_name;
    py::register_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const CppError& error) {
            py::set_error(py::module_::import("orbitsplit._errors").attr(name.c_str()), error.what());
        }
    });
}

}  // namespace

void bind_errors(py::module_&) {
    // pybind11 tries the newest translator first: the base class is registered first, or it would catch its subclasses.
    translate<orbitsplit::Error>("OrbitsplitError");
    translate<orbitsplit::InfeasiblePlanError>("InfeasiblePlanError");
    translate<orbitsplit::CorruptFrameError>("CorruptFrameError");
}
