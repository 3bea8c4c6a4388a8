// From exceptions of the core to statuses, and from structs of callers whose size may differ.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

#include "orbitsplit/c_api.h"

namespace orbitsplit::c_api {

// An error that no exception of the core stands for.
class StatusError : public std::runtime_error {
  public:
    StatusError(orbitsplit_status status, const std::string& message)
        : std::runtime_error(message), status_(status) {}

    orbitsplit_status status() const { return status_; }

  private:
    orbitsplit_status status_;
};

// The status of the exception that is being handled, whose message is copied. Allocates nothing.
orbitsplit_status report(orbitsplit_error* error) noexcept;

// Runs the body of a function of the interface.
template <class Body>
orbitsplit_status guarded(orbitsplit_error* error, Body body) noexcept {
    try {
        body();
        return ORBITSPLIT_OK;
    } catch (...) {
        return report(error);
    }
}

// Arguments that must not be NULL.
template <class T>
T& needed(T* pointer, const char* name) {
    if (pointer == nullptr) throw std::invalid_argument(std::string(name) + " is NULL");
    return *pointer;
}

// An array of the caller, which may be NULL if it is empty.
template <class T>
std::span<T> array_of(T* begin, std::size_t count, const char* name) {
    if (count > 0) needed(begin, name);
    return {begin, count};
}

inline std::span<const std::byte> bytes_of(const void* begin, std::size_t count, const char* name) {
    return array_of(static_cast<const std::byte*>(begin), count, name);
}

inline std::span<std::byte> memory_of(void* begin, std::size_t count, const char* name) {
    return array_of(static_cast<std::byte*>(begin), count, name);
}

// Throws unless `bytes`, the `struct_bytes` of a struct, can be the size of one.
void check_struct_bytes(std::size_t bytes, const char* name);

// Throws unless the bytes beyond the struct of this library are 0: what they ask for is not known here.
void check_unknown(const void* given, std::size_t given_bytes, std::size_t known_bytes, const char* name);

// The struct of this library: fields that the caller's lacks are 0. NULL: all of them are.
template <class Struct>
Struct read_struct(const Struct* given, const char* name) {
    Struct known{};
    if (given == nullptr) return known;
    check_struct_bytes(given->struct_bytes, name);
    check_unknown(given, given->struct_bytes, sizeof known, name);
    std::memcpy(&known, given, std::min(given->struct_bytes, sizeof known));
    return known;
}

// The reverse: as many fields as the caller's struct has.
template <class Struct>
void write_struct(Struct* given, Struct known, const char* name) {
    const std::size_t bytes = needed(given, name).struct_bytes;
    check_struct_bytes(bytes, name);
    known.struct_bytes = bytes;
    std::memset(static_cast<void*>(given), 0, bytes);
    std::memcpy(static_cast<void*>(given), &known, std::min(bytes, sizeof known));
}

}  // namespace orbitsplit::c_api
