#include "c_api/codebook.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "support/float_bits.hpp"
#include "support/text.hpp"

namespace orbitsplit::c_api {

namespace {

constexpr std::string_view array_names[] = {"step",   "shift",   "scale",  "threshold",
                                            "matrix", "inverse", "tables", "table_of_channel"};

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

std::string quoted(std::string_view text) { return std::string("\"").append(text).append("\""); }

double number(const Json& object, std::string_view key, const std::string& what) {
    return member(object, key, what, Json::Kind::number).number;
}

template <class Integer>
Integer integer(std::string_view text, int base, const std::string& what) {
    Integer value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (error != std::errc{} || end != text.data() + text.size()) refuse(what + " is " + quoted(text));
    return value;
}

int cut_of(const std::string& key) {
    const int cut = integer<std::uint16_t>(key, 10, "a cut");
    if (std::to_string(cut) != key) refuse("a cut is " + quoted(key));  // one key for each cut
    return cut;
}

void read_figures(const Json& given, const std::string& what, CodebookLevel& level) {
    level.name = member(given, "name", what, Json::Kind::string).text;
    const std::pair<const char*, double*> figures[] = {{"bits_per_element", &level.bits_per_element},
                                                       {"loss", &level.loss},
                                                       {"loss_error", &level.loss_error},
                                                       {"encode_s_per_byte", &level.encode_s_per_byte},
                                                       {"decode_s_per_byte", &level.decode_s_per_byte}};
    for (const auto& [name, figure] : figures) {
        *figure = number(given, name, what);
        if (*figure < 0) refuse(what + " has a negative " + quoted(name));
    }
}

void read_scalars(const Json& given, const std::string& what, CodebookLevel& level) {
    for (const auto& [name, value] : given.members) {
        if (name == "inverse_follows") {
            if (value.kind != Json::Kind::boolean || !value.is_true)
                refuse(what + " has an \"inverse_follows\" that is not true");
            level.inverse_follows = true;
            continue;
        }
        const double found = number(given, name, what);
        if (name == "rounding")
            level.rounding = static_cast<float>(found);
        else if (name == "shrink")
            level.shrink = static_cast<float>(found);
        else if (name != "hadamard")
            refuse(what + " has " + quoted(name) + ", which no codec has");
        else if (found >= 0 && found <= std::numeric_limits<std::int32_t>::max() &&
                 found == std::floor(found))
            level.hadamard = static_cast<std::int32_t>(found);
        else
            refuse(what + " has a hadamard that is not a whole number from 0 to 2^31 - 1");
    }
}

CodebookLevel level_of(const Json& given, const std::string& what, const TensorFile& file) {
    CodebookLevel level;
    read_figures(member(given, "level", what, Json::Kind::object), what, level);
    const Json* codec = given.find("codec");
    if (codec != nullptr && codec->kind == Json::Kind::string)
        level.codec = parse_codec(codec->text);
    else if (codec != nullptr && codec->kind != Json::Kind::null)
        refuse(what + " has no valid \"codec\"");
    read_scalars(member(given, "scalars", what, Json::Kind::object), what, level);
    for (const auto& [name, tensor] : member(given, "arrays", what, Json::Kind::object).members) {
        if (std::ranges::find(array_names, name) == std::end(array_names))
            refuse(what + " has " + quoted(name) + ", which no codec has");
        if (tensor.kind != Json::Kind::string || !file.tensors.contains(tensor.text))
            refuse(what + " needs a tensor for " + quoted(name) + " that the file does not have");
        level.arrays.emplace(name, tensor.text);
    }
    if (level.inverse_follows && (!level.arrays.contains("matrix") || level.arrays.contains("inverse")))
        refuse(what +
               " has an inverse that follows from its matrix, so it must have a matrix and no inverse");
    if (!level.codec && !level.arrays.contains("step")) refuse(what + " has neither a codec nor a step");
    return level;
}

}  // namespace

Codebook::Codebook(std::vector<std::byte> bytes) : bytes_(std::move(bytes)), file_(read_tensor_file(bytes_)) {
    const Json& document = file_.document;
    const Json* format = document.find("format");
    if (format == nullptr || format->text != "orbitsplit-codebook")
        refuse("its format is not orbitsplit-codebook");
    // Version 2 has matrices in float16 too, version 3 codecs whose inverse follows from their matrix.
    if (const double version = number(document, "version", "its document");
        version != 1 && version != 2 && version != 3)
        refuse("its version is " + text::number(version) + ", this reader knows 1 to 3");
    id_ =
        integer<std::uint64_t>(member(document, "id", "its document", Json::Kind::string).text, 16, "its id");
    if (id_ == 0) refuse("its id is 0, which stands for no codebook");
    for (const auto& [key, levels] :
         member(document, "entries", "its document", Json::Kind::object).members) {
        std::vector<CodebookLevel>& found = cuts_[cut_of(key)];
        if (levels.kind != Json::Kind::array || levels.items.empty() || levels.items.size() > 65536)
            refuse("cut " + key + " has no levels, or more than 65536");
        for (const Json& level : levels.items)
            found.push_back(
                level_of(level, "level " + std::to_string(found.size()) + " of cut " + key, file_));
    }
    file_.document = {};
}

const Tensor* Codebook::tensor(const CodebookLevel& level, const char* name, std::string_view dtype) const {
    const auto found = level.arrays.find(name);
    if (found == level.arrays.end()) return nullptr;
    const Tensor& tensor = file_.tensors.at(found->second);
    if (tensor.dtype != dtype)
        refuse(quoted(name) + " is of dtype " + tensor.dtype + ", it must be " + std::string(dtype));
    return &tensor;
}

std::vector<float> Codebook::floats(const CodebookLevel& level, const char* name) const {
    const Tensor* found = tensor(level, name, "F32");
    if (found == nullptr) return {};
    std::vector<float> numbers(found->bytes.size() / sizeof(float));
    if (!numbers.empty()) std::memcpy(numbers.data(), found->bytes.data(), found->bytes.size());
    return numbers;
}

std::vector<float> Codebook::matrix(const CodebookLevel& level, const char* name) const {
    const auto found = level.arrays.find(name);
    if (found == level.arrays.end() || file_.tensors.at(found->second).dtype != "F16")
        return floats(level, name);
    const std::span<const std::byte> bytes = file_.tensors.at(found->second).bytes;
    std::vector<float> numbers(bytes.size() / sizeof(std::uint16_t));
    for (std::size_t i = 0; i < numbers.size(); ++i) {
        std::uint16_t half = 0;
        std::memcpy(&half, bytes.data() + i * sizeof half, sizeof half);
        numbers[i] = float_bits::single_from_half(half);
    }
    return numbers;
}

std::vector<std::uint8_t> Codebook::codes(const CodebookLevel& level, const char* name) const {
    const Tensor* found = tensor(level, name, "U8");
    if (found == nullptr) return {};
    const auto* begin = reinterpret_cast<const std::uint8_t*>(found->bytes.data());
    return {begin, begin + found->bytes.size()};
}

CalibratedCodec Codebook::codec_of(int cut, int index) const {
    const CodebookLevel& level = cuts_.at(cut).at(static_cast<std::size_t>(index));
    CalibratedParameters parameters{
        .key = {.codebook = id_,
                .cut = static_cast<std::uint16_t>(cut),
                .level = static_cast<std::uint16_t>(index)},
        .step = floats(level, "step"),
        .shift = floats(level, "shift"),
        .scale = floats(level, "scale"),
        .threshold = floats(level, "threshold"),
        .rounding = level.rounding,
        .shrink = level.shrink,
        .hadamard = level.hadamard,
        .matrix = matrix(level, "matrix"),
        .inverse = matrix(level, "inverse"),
        .tables = {},
        .table_of_channel = codes(level, "table_of_channel"),
    };
    if (level.inverse_follows) parameters.inverse = inverse_of(parameters.matrix, parameters.step.size());
    const std::vector<std::uint8_t> tables = codes(level, "tables");
    constexpr std::size_t symbols = std::tuple_size_v<SymbolFrequencies>;
    if (tables.size() % symbols != 0)
        refuse("tables has " + std::to_string(tables.size()) + " bytes, it must have rows of 256");
    parameters.tables.resize(tables.size() / symbols);
    for (std::size_t t = 0; t < parameters.tables.size(); ++t)
        std::copy_n(tables.begin() + static_cast<std::ptrdiff_t>(t * symbols), symbols,
                    parameters.tables[t].begin());
    if (!parameters.tables.empty() && parameters.table_of_channel.empty())
        parameters.table_of_channel.assign(parameters.step.size(), 0);
    return CalibratedCodec(std::move(parameters));
}

}  // namespace orbitsplit::c_api
