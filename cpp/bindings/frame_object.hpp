// A new bytes object that a frame is written into and that is then shrunk to the frame's size.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <span>

// `write` gets `bound` bytes and returns how many it used.
template <class Write>
pybind11::bytes bytes_of_frame(std::uint64_t bound, Write write) {
    PyObject* frame = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(bound));
    if (frame == nullptr) throw pybind11::error_already_set();
    auto owner = pybind11::reinterpret_steal<pybind11::object>(frame);
    const std::size_t size = write(std::span(reinterpret_cast<std::byte*>(PyBytes_AS_STRING(frame)), bound));
    frame = owner.release().ptr();
    // On failure this frees the bytes and sets `frame` to null.
    if (_PyBytes_Resize(&frame, static_cast<Py_ssize_t>(size)) != 0) throw pybind11::error_already_set();
    return pybind11::reinterpret_steal<pybind11::bytes>(frame);
}
