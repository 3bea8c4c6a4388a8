#include "c_api/status.hpp"

#include <new>
#include <string_view>

#include "orbitsplit/error.hpp"

namespace orbitsplit::c_api {

namespace {

constexpr std::size_t largest_struct = 4096;  // far above all structs, far below a number that is none

orbitsplit_status failed(orbitsplit_error* error, orbitsplit_status status, std::string_view message) {
    if (error == nullptr) return status;
    error->status = status;
    constexpr std::size_t room = sizeof error->message - 1;
    constexpr std::string_view cut = "...";
    std::size_t size = std::min(message.size(), room);
    if (message.size() > room) {
        size = room - cut.size();
        // Not within a character of UTF-8.
        while (size > 0 && (static_cast<unsigned char>(message[size]) & 0xC0U) == 0x80U) --size;
    }
    std::memcpy(error->message, message.data(), size);
    if (size < message.size()) {
        std::memcpy(error->message + size, cut.data(), cut.size());
        size += cut.size();
    }
    error->message[size] = '\0';
    return status;
}

}  // namespace

orbitsplit_status report(orbitsplit_error* error) noexcept {
    try {
        throw;
    } catch (const StatusError& found) {
        return failed(error, found.status(), found.what());
    } catch (const CorruptFrameError& found) {
        return failed(error, ORBITSPLIT_CORRUPT_FRAME, found.what());
    } catch (const StoppedError& found) {
        return failed(error, ORBITSPLIT_STOPPED, found.what());
    } catch (const BusyError& found) {
        return failed(error, ORBITSPLIT_BUSY, found.what());
    } catch (const std::invalid_argument& found) {
        return failed(error, ORBITSPLIT_INVALID_ARGUMENT, found.what());
    } catch (const std::bad_alloc&) {
        return failed(error, ORBITSPLIT_OUT_OF_MEMORY, "there is not enough memory");
    } catch (const std::length_error&) {
        return failed(error, ORBITSPLIT_OUT_OF_MEMORY,
                      "there is not enough memory: an array would exceed the address space");
    } catch (const std::exception& found) {
        return failed(error, ORBITSPLIT_INTERNAL_ERROR, found.what());
    } catch (...) {
        return failed(error, ORBITSPLIT_INTERNAL_ERROR, "an exception of an unknown type");
    }
}

void check_struct_bytes(std::size_t bytes, const char* name) {
    if (bytes < sizeof(std::size_t) || bytes > largest_struct)
        throw StatusError(ORBITSPLIT_WRONG_VERSION, "struct_bytes of " + std::string(name) + " is " +
                                                        std::to_string(bytes) +
                                                        ", it must be the size of the struct");
}

void check_unknown(const void* given, std::size_t given_bytes, std::size_t known_bytes, const char* name) {
    const auto* bytes = static_cast<const unsigned char*>(given);
    for (std::size_t i = known_bytes; i < given_bytes; ++i)
        if (bytes[i] != 0)
            throw StatusError(ORBITSPLIT_WRONG_VERSION,
                              std::string(name) + " has a field at byte " + std::to_string(i) +
                                  " that this library does not know, its struct has " +
                                  std::to_string(known_bytes) + " bytes");
}

}  // namespace orbitsplit::c_api

extern "C" {

const char* orbitsplit_version(void) { return ORBITSPLIT_VERSION; }

orbitsplit_status orbitsplit_check_version(int major, int minor, orbitsplit_error* error) {
    return orbitsplit::c_api::guarded(error, [&] {
        if (major == ORBITSPLIT_C_API_MAJOR && minor <= ORBITSPLIT_C_API_MINOR) return;
        const auto text = [](int first, int second) {
            return std::to_string(first) + "." + std::to_string(second);
        };
        throw orbitsplit::c_api::StatusError(ORBITSPLIT_WRONG_VERSION,
                                             "the header has version " + text(major, minor) +
                                                 " of the C interface, the library has " +
                                                 text(ORBITSPLIT_C_API_MAJOR, ORBITSPLIT_C_API_MINOR));
    });
}
}
