"""The compiled loops of a decoding step, which read only the needed rows of a matrix (docs/method.md, section 9).

Matrices are float32, float16 (as uint16) or bfloat16 (as int16); sums are float32. Eight distant rows are read at a
time, because that many streams from memory keep one core busy. All functions are at module level, so that numba can
cache their compiled form on disk.
"""

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# Without nnan and ninf: bounds may be infinite, and values that are not finite must stay so.
_jit = numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy")
_zero, _infinity = numba.float32(0), numba.float32(float("inf"))


@intrinsic
def _wide(typing: Any, value: Any) -> Any:
    """Convert a stored number to float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (given,) = args
        if signature.args[0] == types.uint16:  # float16: one instruction converts a whole register
            return builder.fpext(builder.bitcast(given, ir.HalfType()), ir.FloatType())
        if signature.args[0] == types.int16:  # bfloat16: the upper half of a float32
            bits = builder.shl(builder.zext(given, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
            return builder.bitcast(bits, ir.FloatType())
        return given

    return types.float32(value), generate


@intrinsic
def _floats(typing: Any, address: Any) -> Any:
    """A pointer to the float32 at an address. A tensor's data_ptr() takes a tenth of the time of its numpy()."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.int64), generate


@_jit
def _ordered(address, order, into):  # type: ignore[no-untyped-def]
    """Copy the values at an address in the given order."""
    values = numba.carray(_floats(address), len(order))
    for k in range(len(order)):
        into[k] = values[order[k]]


@_jit
def _spread(rows, low, high):  # type: ignore[no-untyped-def]
    """Fill rows[low:high] with low to high, such that eight neighbours are an eighth of the range apart."""
    eighth = (high - low) // 8
    for i in range(8 * eighth):
        rows[low + i] = low + (i % 8) * eighth + i // 8
    for i in range(low + 8 * eighth, high):
        rows[i] = i


@_jit
def _add_products(flat, start, width, x, rows, sums):  # type: ignore[no-untyped-def]
    """Add to the sums of some rows their products with ``x`` (width,); row j begins at start + j * width."""
    whole = len(rows) - len(rows) % 8
    for i in range(0, whole, 8):
        j0, j1, j2, j3 = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        j4, j5, j6, j7 = rows[i + 4], rows[i + 5], rows[i + 6], rows[i + 7]
        w0 = flat[start + j0 * width : start + (j0 + 1) * width]
        w1 = flat[start + j1 * width : start + (j1 + 1) * width]
        w2 = flat[start + j2 * width : start + (j2 + 1) * width]
        w3 = flat[start + j3 * width : start + (j3 + 1) * width]
        w4 = flat[start + j4 * width : start + (j4 + 1) * width]
        w5 = flat[start + j5 * width : start + (j5 + 1) * width]
        w6 = flat[start + j6 * width : start + (j6 + 1) * width]
        w7 = flat[start + j7 * width : start + (j7 + 1) * width]
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = _zero
        for k in range(width):
            v = x[k]
            s0 += _wide(w0[k]) * v
            s1 += _wide(w1[k]) * v
            s2 += _wide(w2[k]) * v
            s3 += _wide(w3[k]) * v
            s4 += _wide(w4[k]) * v
            s5 += _wide(w5[k]) * v
            s6 += _wide(w6[k]) * v
            s7 += _wide(w7[k]) * v
        sums[j0] += s0
        sums[j1] += s1
        sums[j2] += s2
        sums[j3] += s3
        sums[j4] += s4
        sums[j5] += s5
        sums[j6] += s6
        sums[j7] += s7
    for i in range(whole, len(rows)):
        j = rows[i]
        w = flat[start + j * width : start + (j + 1) * width]
        s = _zero
        for k in range(width):
            s += _wide(w[k]) * x[k]
        sums[j] += s


@_jit
def staged(flat, widths, order, bias, bounds, lines, least, rows, x, given, out, low, high):  # type: ignore[no-untyped-def]
    """Compute the outputs low to high of a layer, stage by stage, for the outputs that have not stopped.

    Args:
        flat: The weights (outputs * terms,): the blocks (outputs, width) of the stages, one after the other.
        widths: The number of terms of each block (stages + 1,).
        order: The terms in the order of the blocks (terms,).
        bias: The bias (outputs,), float32.
        bounds: Bounds (stages, outputs), float32, below which an output stops. May have no stages.
        lines: Slope, upper and margin (stages, 3, outputs), float32. An output is below ``slope * sum + upper`` and
            above that value minus the margin. It stops if it is below another output. May have no stages.
        least: The value of stopped outputs, float32. Smaller outputs get this value too.
        rows: Work space (outputs,), int32.
        x: Work space (terms,), float32.
        given: The address of the input (terms,), float32.
        out: The address of the output (outputs,), float32.
        low: The first output.
        high: The end of the outputs.

    Returns:
        The number of weights read.
    """
    outputs = len(bias)
    out = numba.carray(_floats(out), outputs)
    _ordered(given, order, x)
    _spread(rows, low, high)
    out[low:high] = 0
    count = high - low
    start = first = read = 0
    for stage in range(len(widths)):
        width = widths[stage]
        alive = rows[low : low + count]
        _add_products(flat, start, width, x[first : first + width], alive, out)
        read += count * width
        start += outputs * width
        first += width
        if stage < len(bounds):
            count = _keep_above(bounds[stage], least, alive, out)
        if stage < len(lines):
            count = _keep_leading(lines[stage, 0], lines[stage, 1], lines[stage, 2], least, alive, out)
    for j in rows[low : low + count]:
        z = out[j] + bias[j]
        out[j] = least if z <= least else z  # NaN stays NaN
    return read


# Both functions have no branch on what stops, because it cannot be predicted.


@_jit
def _keep_above(bound, least, alive, out):  # type: ignore[no-untyped-def]
    """Move outputs whose sum is not below the bound to the front; returns their number."""
    left = 0
    for j in alive:
        stops = out[j] < bound[j]
        alive[left] = j
        left += not stops
        out[j] = least if stops else out[j]
    return left


@_jit
def _keep_leading(slope, upper, margin, least, alive, out):  # type: ignore[no-untyped-def]
    """Move outputs that may be the largest to the front; returns their number."""
    leader = -_infinity
    for j in alive:
        leader = max(leader, slope[j] * out[j] + upper[j] - margin[j])
    left = 0
    for j in alive:
        drops = slope[j] * out[j] + upper[j] < leader
        alive[left] = j
        left += not drops
        out[j] = least if drops else out[j]
    return left


@_jit
def down(weight, bias, rows, given, out, low, high):  # type: ignore[no-untyped-def]
    """Compute the bias plus the products of an input with the rows low to high of ``weight`` (inputs, outputs).

    Rows at which the input is 0 are not read.

    Args:
        weight: The weights (inputs, outputs).
        bias: The bias (outputs,), float32.
        rows: Work space (inputs,), int32.
        given: The address of the input (inputs,), float32.
        out: The address of the output (outputs,), float32.
        low: The first row.
        high: The end of the rows.

    Returns:
        The number of weights read.
    """
    h = numba.carray(_floats(given), len(weight))
    out = numba.carray(_floats(out), len(bias))
    out[:] = bias
    _spread(rows, low, high)
    count = 0
    for j in rows[low:high]:
        rows[low + count] = j
        count += h[j] != 0
    active = rows[low : low + count]
    whole = count - count % 8
    for i in range(0, whole, 8):
        j0, j1, j2, j3 = active[i], active[i + 1], active[i + 2], active[i + 3]
        j4, j5, j6, j7 = active[i + 4], active[i + 5], active[i + 6], active[i + 7]
        w0, w1, w2, w3 = weight[j0], weight[j1], weight[j2], weight[j3]
        w4, w5, w6, w7 = weight[j4], weight[j5], weight[j6], weight[j7]
        h0, h1, h2, h3 = h[j0], h[j1], h[j2], h[j3]
        h4, h5, h6, h7 = h[j4], h[j5], h[j6], h[j7]
        for k in range(len(out)):
            first = _wide(w0[k]) * h0 + _wide(w1[k]) * h1 + _wide(w2[k]) * h2 + _wide(w3[k]) * h3
            second = _wide(w4[k]) * h4 + _wide(w5[k]) * h5 + _wide(w6[k]) * h6 + _wide(w7[k]) * h7
            out[k] += first + second
    for i in range(whole, count):
        w, v = weight[active[i]], h[active[i]]
        for k in range(len(out)):
            out[k] += _wide(w[k]) * v
    return count * len(out)


@_jit
def add(sums, out):  # type: ignore[no-untyped-def]
    """Add the rows of ``sums`` (parts, outputs) to the float32 at ``out``."""
    out = numba.carray(_floats(out), sums.shape[1])
    for part in sums:
        for k in range(len(out)):
            out[k] += part[k]
