// A codebook as Codebook.save() of the Python package writes it: levels of each cut, and the codec of each level.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "c_api/json.hpp"
#include "c_api/tensor_file.hpp"
#include "orbitsplit/calibrated.hpp"
#include "orbitsplit/codec.hpp"

namespace orbitsplit::c_api {

struct CodebookLevel {
    std::string name;
    double bits_per_element = 0;
    double loss = 0;
    double loss_error = 0;
    double encode_s_per_byte = 0;
    double decode_s_per_byte = 0;
    std::optional<Codec> codec;  // none: a calibrated one, of the following
    float rounding = 0.5F;
    float shrink = 0;
    std::int32_t hadamard = 0;
    bool inverse_follows = false;               // the codec's inverse is inverse_of() its matrix
    std::map<std::string, std::string> arrays;  // tensors by the names of CalibratedParameters
};

class Codebook {
  public:
    // Throws std::invalid_argument for bytes that are no codebook.
    explicit Codebook(std::vector<std::byte> bytes);
    Codebook(const Codebook&) = delete;
    Codebook& operator=(const Codebook&) = delete;

    std::uint64_t id() const { return id_; }
    // By cut, in order; each cut has a level.
    const std::map<int, std::vector<CodebookLevel>>& cuts() const { return cuts_; }

    // The calibrated codec of a level that has one. Throws std::invalid_argument for numbers that no codec has.
    CalibratedCodec codec_of(int cut, int level) const;

  private:
    std::vector<float> floats(const CodebookLevel& level, const char* name) const;
    std::vector<float> matrix(const CodebookLevel& level, const char* name) const;  // of float32 or float16
    std::vector<std::uint8_t> codes(const CodebookLevel& level, const char* name) const;
    const Tensor* tensor(const CodebookLevel& level, const char* name, std::string_view dtype) const;

    std::vector<std::byte> bytes_;  // which the tensors refer to
    TensorFile file_;
    std::uint64_t id_ = 0;
    std::map<int, std::vector<CodebookLevel>> cuts_;
};

}  // namespace orbitsplit::c_api
