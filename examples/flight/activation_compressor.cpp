#include "activation_compressor.hpp"

#include <array>
#include <exception>

using framework::Event;
using orbitsplit::DType;

ActivationCompressor::ActivationCompressor(std::size_t rows, std::size_t width,
                                           const orbitsplit::Codec& codec,
                                           framework::BufferSendPort& frame_out,
                                           framework::EventPort& event_out)
    : encoder_(DType::float32, std::array{static_cast<std::int64_t>(rows), static_cast<std::int64_t>(width)},
               codec),
      frame_(encoder_.frame_bytes()),
      frame_out_(frame_out),
      event_out_(event_out) {}

void ActivationCompressor::activation_in_handler(framework::Buffer activation) noexcept {
    ++telemetry_.messages;
    if (activation.size() != encoder_.data_bytes()) return refuse(Event::refused_size, activation.size());
    std::size_t size = 0;
    try {
        size = encoder_.encode(frame_, activation);
    } catch (const std::exception&) {  // values that the codec cannot represent: NaN and infinity
        return refuse(Event::refused_values, activation.size());
    }
    telemetry_.bytes_in += activation.size();
    telemetry_.bytes_out += size;
    event_out_.log(Event::compressed, size);
    frame_out_.send(framework::Buffer(frame_).first(size));
}

void ActivationCompressor::refuse(Event event, std::size_t value) {
    ++telemetry_.refused;
    event_out_.log(event, value);
}
