// Errors thrown by the core.
//
//     std::runtime_error
//     └── Error
//         ├── InfeasiblePlanError   no plan respects memory, links and loss budget
//         ├── CorruptFrameError     bytes are not a valid frame
//         ├── BusyError             an Encoder or Decoder was called while another call of it was running
//         └── StoppedError          a codec was stopped at the caller's request
//
// Invalid arguments (a negative time, a codec that does not exist) throw std::invalid_argument. Every message states
// the fact, the numbers and the limit.
#pragma once

#include <stdexcept>

namespace orbitsplit {

class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

class InfeasiblePlanError : public Error {
  public:
    using Error::Error;
};

class CorruptFrameError : public Error {
  public:
    using Error::Error;
};

class BusyError : public Error {
  public:
    using Error::Error;
};

class StoppedError : public Error {
  public:
    using Error::Error;
};

}  // namespace orbitsplit
