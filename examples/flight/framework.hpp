// What a flight framework would generate: buffers, ports and events, as in F Prime (Fw::Buffer, Svc ports) or over the
// software bus of cFS. This example brings just enough of them to be complete.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace framework {

// Memory that belongs to whoever sent it until the call of the port returns.
using Buffer = std::span<std::byte>;

class BufferSendPort {
  public:
    virtual ~BufferSendPort() = default;
    virtual void send(Buffer buffer) = 0;
};

enum class Event : std::uint8_t { compressed, refused_size, refused_values };

class EventPort {
  public:
    virtual ~EventPort() = default;
    virtual void log(Event event, std::size_t value) = 0;
};

}  // namespace framework
