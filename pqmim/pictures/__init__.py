"""Bytes of an image file -> pixels, and a record of what the pixels do not hold.

read.py      which decoder; turned upright                    read(data, Rules()) -> Picture
jpeg.py      JPEG, strictly, whatever is odd about its metadata            simplejpeg
raster.py    the other formats; transparency, depth, frames      Pillow's plug-ins, by name
png.py tiff.py   what Pillow must not be shown of a PNG, or takes wrongly of a TIFF
segments.py  a JPEG's header and scans; what stands behind a picture's end
facts.py     what the other formats' headers say beyond what Pillow keeps
colour.py    embedded ICC profiles to sRGB                               Pillow's ImageCms
declared.py  colour that is declared by numbers (gAMA, cHRM, cICP, nclx), as a profile
ifd.py       tag directories: EXIF orientation, pages, second pictures
"""
