// The bytes of any contiguous Python object without a copy, held for the lifetime of the view.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <span>

enum class Access { read, write };

class ByteView {
  public:
    explicit ByteView(pybind11::handle object, Access access = Access::read) {
        const int flags = access == Access::write ? PyBUF_WRITABLE : PyBUF_SIMPLE;
        if (PyObject_GetBuffer(object.ptr(), &buffer_, flags) != 0) throw pybind11::error_already_set();
    }
    ~ByteView() { PyBuffer_Release(&buffer_); }
    ByteView(const ByteView&) = delete;
    ByteView& operator=(const ByteView&) = delete;

    std::span<const std::byte> bytes() const {
        return {static_cast<const std::byte*>(buffer_.buf), static_cast<std::size_t>(buffer_.len)};
    }
    // For views with write access.
    std::span<std::byte> memory() const {
        return {static_cast<std::byte*>(buffer_.buf), static_cast<std::size_t>(buffer_.len)};
    }

  private:
    Py_buffer buffer_{};
};
