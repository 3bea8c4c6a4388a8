// A passive component: an activation arrives as a message, its frame leaves as another one.
//
// All memory is taken by the constructor, for one shape and codec: activation_in_handler() allocates nothing, unless it
// refuses values, which it reports as an event. It is noexcept, and runs on the thread of the caller, as the handler of a
// passive component does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <orbitsplit/encoder.hpp>
#include <vector>

#include "framework.hpp"

class ActivationCompressor {
  public:
    // Telemetry channels.
    struct Telemetry {
        std::uint32_t messages = 0;
        std::uint32_t refused = 0;
        std::uint64_t bytes_in = 0;
        std::uint64_t bytes_out = 0;
    };

    // During the start of the software: throws std::invalid_argument for a shape or codec that does not exist.
    ActivationCompressor(std::size_t rows, std::size_t width, const orbitsplit::Codec& codec,
                         framework::BufferSendPort& frame_out, framework::EventPort& event_out);

    // The handler of the input port: float32 [rows, width], as bytes.
    void activation_in_handler(framework::Buffer activation) noexcept;

    const Telemetry& telemetry() const { return telemetry_; }

  private:
    void refuse(framework::Event event, std::size_t value);

    orbitsplit::Encoder encoder_;
    std::vector<std::byte> frame_;
    framework::BufferSendPort& frame_out_;
    framework::EventPort& event_out_;
    Telemetry telemetry_;
};
